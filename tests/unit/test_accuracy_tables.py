"""The page on accuracy is what its script makes of the JSON, and a table shows what is in it."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("accuracy_tables", ROOT / "scripts" / "accuracy_tables.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def entry(kept=0.5, **scores):
    measured = {
        name.replace("_", "+"): {"value": value, "change": [-0.1, 0.1]} for name, value in scores.items()
    }
    return {"kept": kept, "measured_on": 48, "scores": measured}


STATE = {
    "parents": {"net": {"metric": "ap", "value": 0.6, "interval": [0.5, 0.7], "images": 9}},
    "cuts": {
        "net/0.5/l1/global/2/0": entry(none=0.1, fold=0.3),
        "net/0.5/taylor/global/2/0": entry(none=0.2, fold=0.2),
        "net/0.5/random/global/2/0": entry(fold=0.4),
        "net/0.5/random/global/2/1": entry(fold=0.6),
        "net/0.5/pruner:Taylor/global/0/0": {"scores": {}, "failed": "RuntimeError: no."},
        "net/0.7/l1/global/2/0": entry(0.7, none=0.5),
    },
    "versions": {},
}


def test_a_table_has_the_best_row_first_and_the_best_of_every_column_bold(script):
    text = script.tables(STATE)
    assert text.splitlines() == [
        "### net, 0.7 of the MACs",
        "",
        "Parent: AP 0.600 [0.500, 0.700], 9 validation images. Measured on 48 training images.",
        "",
        "| criterion | allocation | steps | MACs kept | bare cut | best, less the parent |",
        "|---|---|---:|---:|---:|---|",
        "| l1 | global | 2 | 0.700 | **0.500** | -0.100 to +0.100 |",
        "",
        "### net, 0.5 of the MACs",
        "",
        "Parent: AP 0.600 [0.500, 0.700], 9 validation images. Measured on 48 training images.",
        "",
        "| criterion | allocation | steps | MACs kept | bare cut | fold | best, less the parent |",
        "|---|---|---:|---:|---:|---:|---|",
        "| random | global | 2 | 0.500 |  | **0.500** (0.400 to 0.600) | -0.100 to +0.100 |",
        "| l1 | global | 2 | 0.500 | 0.100 | 0.300 | -0.100 to +0.100 |",
        "| taylor | global | 2 | 0.500 | **0.200** | 0.200 | -0.100 to +0.100 |",
        "",
        "* `pruner:Taylor`, global: RuntimeError: no.",
    ]


def test_tables_replace_what_stands_between_the_marks_alone(script, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n\n{script.BEGIN}\nformerly\n{script.END}\n\nafter\n")
    script.write_tables(STATE, page)
    once = page.read_text()
    assert once.startswith(f"before\n\n{script.BEGIN}\n\n### net")
    assert once.endswith(f"{script.END}\n\nafter\n")
    assert "formerly" not in once
    script.write_tables(STATE, page)
    assert page.read_text() == once


def test_the_page_is_what_the_script_makes_of_the_numbers_beside_it(script, tmp_path):
    page = tmp_path / "accuracy.md"
    page.write_text((ROOT / "docs" / "accuracy.md").read_text("utf-8"), encoding="utf-8")
    script.write_tables(json.loads((ROOT / "docs" / "accuracy.json").read_text("utf-8")), page)
    assert page.read_text("utf-8") == (ROOT / "docs" / "accuracy.md").read_text("utf-8")
