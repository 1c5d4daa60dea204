"""Workflows, templates and the citation are files that work: they parse, and the commands in them are there."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

import yolo_prune
from yolo_prune.cli.entry import COMMANDS
from yolo_prune.runs.configure import make_config

tomllib = pytest.importorskip("tomllib", reason="pyproject.toml is read from Python 3.11 on")
ROOT = Path(__file__).resolve().parents[2]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
FORMS = [path for path in sorted((GITHUB / "ISSUE_TEMPLATE").glob("*.yml")) if path.name != "config.yml"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


def read(path):
    return yaml.safe_load(path.read_text("utf-8"))


def steps(path):
    return [step for job in read(path)["jobs"].values() for step in job["steps"]]


def commands(path):
    return [shlex.split(line) for step in steps(path) for line in step.get("run", "").splitlines()]


def faults(words):
    """What of a command is not there: a script, a file of tests, an extra, a command or option of ours."""
    program, *rest = words
    if "/" in program and not program.startswith(".venv/") and not (ROOT / program).is_file():
        yield f"{program} is no file"
    yield from (
        f"{word} is not there" for word in rest if word.startswith("tests/") and not (ROOT / word).exists()
    )
    for found in re.findall(r"\.\[([a-z,]+)\]", " ".join(rest)):
        yield from (f"no extra {name}" for name in found.split(",") if name not in EXTRAS)
    if program.rpartition("/")[2] == "yolo-prune":
        yield from _fault_of_ours(rest)


def _fault_of_ours(words):
    name, *options = words
    if name not in COMMANDS:
        yield f"no command {name}"
    elif options:
        make_config(COMMANDS[name].kind, options)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_the_commands_of_a_workflow_are_there(path):
    found = commands(path)
    assert found
    waiting = {"no extra docs"} if "docs" not in EXTRAS else set()
    assert not {fault for words in found for fault in faults(words)} - waiting


def test_the_rule_on_commands_sees_what_it_forbids():
    assert list(faults(["scripts/no.sh"])) == ["scripts/no.sh is no file"]
    assert list(faults(["python", "-m", "pytest", "tests/no.py"])) == ["tests/no.py is not there"]
    assert list(faults(["python", "-m", "pip", "install", "-e", ".[onnx,no]"])) == ["no extra no"]
    assert list(faults([".venv/bin/yolo-prune", "docter"])) == ["no command docter"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_may_read_and_no_more_and_ends(path):
    content = read(path)
    assert content["permissions"] == {"contents": "read"}
    assert True in content, "'on' is a switch to YAML"
    assert all(job["timeout-minutes"] <= 90 for job in content["jobs"].values())
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"]) for step in steps(path) if "uses" in step)


def test_the_tests_run_on_every_python_that_is_supported_and_on_the_oldest_host():
    jobs = read(GITHUB / "workflows" / "tests.yml")["jobs"]
    pythons = jobs["tests"]["strategy"]["matrix"]["python"]
    assert f">={pythons[0]}" == PROJECT["requires-python"]
    assert pythons == [f"3.{minor}" for minor in range(10, 14)]
    oldest = "\n".join(step.get("run", "") for step in jobs["oldest"]["steps"])
    wanted = [one for name in ("torch", "ultralytics", "torchvision") for one in EXTRAS[name]]
    bounds = dict(re.findall(r"^(torch|ultralytics|torchvision)>=([\d.]+)", "\n".join(wanted), re.MULTILINE))
    assert len(bounds) == 3
    for name, version in bounds.items():
        assert re.search(rf'"{name}=={re.escape(version)}(\.\*)?"', oldest), f"{name} {version} is the oldest"
    assert jobs["oldest"]["steps"][1]["with"]["python-version"] == pythons[0]


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_a_form_for_issues_asks_what_doctor_prints(path):
    form = read(path)
    assert {"name", "description", "body"} <= form.keys()
    fields = {field["id"]: field for field in form["body"]}
    assert all(field["type"] in ("textarea", "input") for field in form["body"])
    assert "yolo-prune doctor" in fields["doctor"]["attributes"]["label"]
    assert fields["doctor"]["validations"] == {"required": True}
    for word in re.findall(r"`yolo-prune ([a-z]+)", path.read_text("utf-8")):
        assert word in COMMANDS


def test_every_other_file_of_the_kind_parses():
    files = [*GITHUB.rglob("*.yml"), ROOT / "CITATION.cff"]
    assert len(files) >= 6
    assert all(isinstance(read(path), dict) for path in files)
    assert "`yolo-prune doctor`" in (GITHUB / "pull_request_template.md").read_text("utf-8")


def test_the_citation_is_of_this_version_and_licence():
    citation = read(ROOT / "CITATION.cff")
    assert citation["version"] == yolo_prune.__version__
    assert citation["license"] == PROJECT["license"]
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()


def test_the_security_page_says_what_trust_means():
    text = (ROOT / "SECURITY.md").read_text("utf-8")
    assert "| `trust=true` |" in text
    assert "Report a vulnerability" in text
