"""The fault matrix: `python -m tests.benchmarks.faults --json FILE`.

Everything that may happen to a sweep on a cluster, done for real, each to a sweep of its own: what
it did to the sweep's trials and to MLflow, and how long until it was over. See `tests.harm`.
"""

import argparse
import json
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tests.harm import COLUMNS, Row, faults, may_mount, row_of, scene_in


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    lines = [COLUMNS, tuple("---" for _ in COLUMNS), *(row.cells for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs="+", help="faults by a part of their names")
    parser.add_argument("--outage", type=float, default=60.0, help="seconds that a store is away")
    asked = parser.parse_args()
    rows, failed = list[Row](), list[str]()
    with tempfile.TemporaryDirectory() as place, scene_in(Path(place)) as scene:
        for fault in faults(asked.outage):
            if asked.only and not any(part in fault.name for part in asked.only):
                continue
            if fault.small_disk and not may_mount():
                print(f"{fault.name}: left out, for it takes root to mount a file system")
                continue
            try:
                rows.append(row_of(fault, scene))
            except AssertionError:
                traceback.print_exc()
                failed.append(fault.name)
            else:
                print(f"| {' | '.join(rows[-1].cells)} |", flush=True)
    print(table(rows))
    if asked.json is not None:
        asked.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    if failed:
        raise SystemExit(f"not survived: {', '.join(failed)}")


if __name__ == "__main__":
    main()
