"""The frame of every HTML page: it stands alone, with plotly.js in it, and asks for nothing else.

MLflow 3.17 shows HTML artifacts in an iframe with ``sandbox="allow-scripts"``: no storage, no
sibling files, perhaps no internet. So plotly.js is part of the page, once (4.8 MB).

Names and reasons in it may be a stranger's. They are escaped; and a browser runs the two scripts
that the page names by their digests, no other, and asks for nothing.
"""

import base64
import hashlib
import html
import json
from collections.abc import Mapping
from functools import cache, lru_cache
from typing import Any

from plotly.offline import get_plotlyjs

from autoprune.orchestration.reports.figure import Figure


def html_page(
    title: str, body: str, figures: Mapping[str, Figure], *, style: str = "", script: str = ""
) -> str:
    """A page with `body`, in which the element with a figure's name shows that figure.

    `body` is HTML; `title` is text. `style` follows the style that all pages share, and `script`
    runs when `figures` and `config` are known and nothing is drawn yet.
    """
    own = _SCRIPT.format(figures=_script_json(figures), script=script)
    return _PAGE.format(
        title=html.escape(title),
        style=_STYLE + style,
        plotly=_plotlyjs(),
        body=body,
        script=own,
        scripts=f"{_digest(_plotlyjs())} {_digest(own)}",
    )


@cache  # the dashboard is written anew after every trial
def _plotlyjs() -> str:
    return str(get_plotlyjs())


@lru_cache(maxsize=2)
def _digest(script: str) -> str:
    """What a page's policy calls a script."""
    found = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(found).decode()}'"


def _script_json(data: Any) -> str:
    """JSON that can stand inside a script element whatever its texts say."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


_STYLE = """
*{box-sizing:border-box}
body{margin:0;padding:20px 24px 32px;background:#f5f6f8;color:#1f2937;
font:14px/1.45 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
h1{margin:0;font-size:22px;overflow-wrap:anywhere}
h2{margin:0;font-size:16px}
.line{margin:2px 0 14px;color:#4b5563}
section{margin-top:14px;padding:14px 16px;min-width:0;background:#fff;border:1px solid #e3e7ed;
border-radius:8px}
section p{margin:2px 0 6px;color:#4b5563;font-size:13px}
.scroll{overflow:auto;max-height:340px;margin-top:8px}
table{border-collapse:collapse;width:100%;font-size:13px}
th{position:sticky;top:0;background:#fff}
th,td{text-align:left;padding:5px 12px 5px 0;border-bottom:1px solid #eceff3;vertical-align:top;
overflow-wrap:anywhere}
th,td:first-child,td:nth-child(2){white-space:nowrap}
@media(max-width:900px){body{padding:14px}}
"""

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src {scripts};
style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width,initial-scale=1">
<title>{title}</title><style>{style}</style>
<script>{plotly}</script></head><body>
{body}
<script>{script}</script></body></html>
"""

_SCRIPT = """
const figures = {figures};
const config = {{responsive: true, displaylogo: false,
  modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"]}};
{script}
for (const [id, figure] of Object.entries(figures))
  Plotly.newPlot(id, figure.data, figure.layout, config);
"""
