"""Write the JSON Schemas of report.json and plan.json from the dataclasses: after a field was added, run this."""

import json
from pathlib import Path

import yolo_prune
from yolo_prune.cut.record import VERSION as PLAN_VERSION
from yolo_prune.cut.record import PrunePlan
from yolo_prune.report import RunReport
from yolo_prune.report.rows import SCHEMA_VERSION
from yolo_prune.report.schema import schema_of

FOLDER = Path(yolo_prune.__file__).parent / "schemas"


def schemas() -> dict[str, str]:
    """Return the text of every schema by the name of its file."""
    made = {
        "report.schema.json": schema_of(
            RunReport, "report.json of yolo_prune", "schema_version", SCHEMA_VERSION
        ),
        "plan.schema.json": schema_of(PrunePlan, "plan.json of yolo_prune", "version", PLAN_VERSION),
    }
    return {name: json.dumps(content, indent=1) + "\n" for name, content in made.items()}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in schemas().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
        print(FOLDER / name)
