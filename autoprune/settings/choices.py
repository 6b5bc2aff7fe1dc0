"""What to name instead of a name that there is not."""

import difflib
from collections.abc import Sequence

MANY = 12
"""Above so many options only the near miss is named."""


def choose(wanted: str, options: Sequence[str]) -> str:
    """The remedy for a misspelt name: the near miss where there is one, and what there is."""
    near = difflib.get_close_matches(wanted, options, n=1, cutoff=0.5)
    if len(options) <= MANY:
        listed = f"choose from {', '.join(options)}" if options else "there is none"
        return f"did you mean {near[0]!r}? ({listed})" if near else listed
    return (
        f"did you mean {near[0]!r}?" if near else "there is nothing like it (`--cfg job` shows all)"
    )
