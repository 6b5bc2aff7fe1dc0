"""`autoprune study ...`."""

import json
from functools import cache

from autoprune.cli.call import DONE, Call
from autoprune.domain.errors import FaultsError
from autoprune.orchestration.durable import replace_text
from autoprune.orchestration.folders import check_writable, make_folder, new_id
from autoprune.orchestration.reports.sparsity import notes, row_line, sparsity_json, sparsity_table
from autoprune.orchestration.reports.sparsity_page import sparsity_html
from autoprune.orchestration.studies.records import Kind, SparsityStudy
from autoprune.orchestration.studies.sparsity import study_sparsity
from autoprune.settings.studies import build_sparsity

JSON_FILE = "sparsity.json"
PAGE_FILE = "sparsity.html"


def sparsity(call: Call) -> int:
    """Thin a network out in several ways, measure them, and write a table and a picture."""
    request = build_sparsity(call.config, code_paths=call.code_paths)
    check_writable(request.sweep.output)

    place = cache(
        lambda: make_folder(request.sweep.output, new_id(f"{request.sweep.name}-sparsity"))
    )

    def kept(study: SparsityStudy) -> str:
        """Write what is known so far, so that nothing measured is lost; the JSON."""
        found = json.dumps(sparsity_json(study), indent=2)
        replace_text(place() / JSON_FILE, found)
        replace_text(place() / PAGE_FILE, sparsity_html(study))
        return found

    def told(study: SparsityStudy) -> None:
        kept(study)
        call.progress(row_line(study, study.rows[-1]))

    study = study_sparsity(request, report=told)
    if all(row.kind is Kind.UNPRUNED for row in study.rows) and study.absent:
        raise FaultsError([f"{no.kind} at {no.asked:g}: {no.reason}" for no in study.absent])
    found = kept(study)
    if call.as_json:
        print(found)
        return DONE
    call.console.print(sparsity_table(study))
    call.say(*(f"{name:<11} {text}" for name, text in notes(study)))
    call.say("", f"The table and a picture of it: {place() / PAGE_FILE}")
    return DONE
