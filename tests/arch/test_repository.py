"""What a stranger reads and runs first is true: recipes load, commands parse, scripts are sound."""

import ast
import doctest
import importlib
import os
import pkgutil
import re
import subprocess
from pathlib import Path

import pytest

import yolo_prune
from yolo_prune.options import PruneConfig, TrainConfig
from yolo_prune.options.fields import option_fields
from yolo_prune.runs.configure import make_config, rest_keys

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "configs").glob("*.yaml"))
SCRIPTS = [ROOT / ".ci" / "run", *sorted((ROOT / "scripts").glob("*.sh"))]
TEXTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md")]
MODULES = [
    module.name
    for module in pkgutil.walk_packages(yolo_prune.__path__, "yolo_prune.")
    if not module.name.endswith("__main__")
]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_a_recipe_loads_with_nothing_but_model_and_data(recipe):
    kind = TrainConfig if "yolo-prune train" in recipe.read_text("utf-8") else PruneConfig
    config = make_config(kind, ["model=best.pt", "data=data.yaml", f"cfg={recipe}"])
    assert config.model == "best.pt"


def test_default_yaml_says_what_the_defaults_are():
    given = make_config(
        PruneConfig, ["model=m.pt", "data=d.yaml", f"cfg={ROOT / 'configs' / 'default.yaml'}"]
    )
    assert given == PruneConfig(model="m.pt", data="d.yaml", keep_macs=0.5)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_parses_and_names_no_address(script):
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    assert "://" not in script.read_text("utf-8")
    if script.name != "env.sh":  # sourced, not run
        assert os.access(script, os.X_OK)
        assert "set -euo pipefail" in script.read_text("utf-8")


def missing_names(text):
    """Names of the package in a text, as ``yolo_prune.stage.name`` or as a path, that lead nowhere."""
    for name in re.findall(r"\byolo_prune(?:\.[A-Za-z_]\w*)+", text):
        parts, found, place = name.split("."), yolo_prune, "yolo_prune"
        for part in parts[1:]:
            place = f"{place}.{part}"
            if not hasattr(found, part) and place in MODULES:
                importlib.import_module(place)
            if not hasattr(found, part):
                yield name
                break
            found = getattr(found, part)
    yield from (
        path for path in re.findall(r"\byolo_prune/[\w/]+(?:\.\w+)?", text) if not (ROOT / path).exists()
    )


def test_every_name_of_the_package_that_a_text_or_a_docstring_mentions_exists():
    files = [*(ROOT / "docs").glob("*.md"), *TEXTS]
    files += [file for folder in ("yolo_prune", "scripts") for file in (ROOT / folder).rglob("*.py")]
    found = {file.relative_to(ROOT).as_posix(): [*missing_names(file.read_text("utf-8"))] for file in files}
    assert not {name: missing for name, missing in found.items() if missing}
    assert [
        *missing_names("yolo_prune.cut.plan.no_plan, yolo_prune/no.py, yolo_prune.cut.plan.make_plan")
    ] == [
        "yolo_prune.cut.plan.no_plan",
        "yolo_prune/no.py",
    ], "the control"


def test_the_changelog_knows_the_version():
    assert f"## [{yolo_prune.__version__}]" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_the_examples_in_the_docstrings_are_true(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    results = {name: doctest.testmod(importlib.import_module(name), optionflags=options) for name in MODULES}
    assert not {name: result for name, result in results.items() if result.failed}
    assert sum(result.attempted for result in results.values()) >= 20


def programs():
    """The scripts that are written in Python, parsed."""
    return {path.name: ast.parse(path.read_text("utf-8")) for path in sorted((ROOT / "scripts").glob("*.py"))}


def test_what_a_script_takes_from_the_package_is_there():
    missing = []
    for name, tree in programs().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("yolo_prune"):
                home = importlib.import_module(node.module)
                names = [alias.name for alias in node.names if not hasattr(home, alias.name)]
                missing += [f"{name}: {each}" for each in names if f"{node.module}.{each}" not in MODULES]
    assert not missing


def test_a_script_calls_a_run_by_options_that_there_are():
    known = {"model", *option_fields(PruneConfig), *rest_keys(PruneConfig)}
    calls = [
        (name, keyword.arg)
        for name, tree in programs().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "prune"
        for keyword in node.keywords
        if keyword.arg
    ]
    assert calls, "the control: some script prunes"
    assert not [call for call in calls if call[1] not in known]
