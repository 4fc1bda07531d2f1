"""How far meshes and several processes are from one device: the largest deviations that the tests met.

    python -m pytest -m "long or slow" tests/parallel/test_context.py -k like_one_device --junitxml a.xml
    python -m pytest -m slow tests/runs/test_process_shapes.py --junitxml b.xml
    python -m experiments.benchmarks.equality PATH a.xml b.xml

Each test records how far it was from one device (`record_property`), in pytest's report; the last command writes that
into the JSON at PATH as `equality`, and leaves its other parts. `loss` is relative, `parameters` and `samples` are
relative in the 2-norm of the worst array, `levels` of 255.
"""

import json
import pathlib
import shlex
import sys
import xml.etree.ElementTree as ElementTree
from typing import Any

from nova_jax import environment


def read(report: str) -> list[dict[str, Any]]:
    """What the tests of one report recorded, and how each ended."""
    rows = []
    for case in ElementTree.parse(report).iter("testcase"):
        recorded = {found.attrib["name"]: float(found.attrib["value"]) for found in case.iter("property")}
        if recorded:
            passed = not {"failure", "error"} & {child.tag for child in case}
            rows.append({"test": case.attrib["name"], "passed": passed, **recorded})
    return rows


def main() -> None:
    """Writes the rows of all reports, and the largest of each kind."""
    path, *reports = sys.argv[1:]
    rows = [row for report in reports for row in read(report)]
    kinds = sorted({kind for row in rows for kind in row if kind not in ("test", "passed")})
    largest = {kind: max(row[kind] for row in rows if kind in row) for kind in kinds}
    state = {
        "command": shlex.join(["python", "-m", "experiments.benchmarks.equality", *sys.argv[1:]]),
        "environment": environment.describe(),
        "tests": len(rows),
        "passed": sum(row["passed"] for row in rows),
        "largest": largest,
        "rows": rows,
    }
    file = pathlib.Path(path)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"equality": state}, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(largest))


if __name__ == "__main__":
    main()
