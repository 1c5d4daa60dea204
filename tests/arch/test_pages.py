"""What the pages say can be done: commands parse, code compiles, links and anchors lead somewhere, tables are the numbers'."""

import importlib.util
import json
import re
import shlex
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import yaml

from yolo_prune.cli.entry import main
from yolo_prune.cli.registry import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]
RECIPES = sorted((ROOT / "configs").glob("*.yaml"))
WORKFLOWS = sorted((ROOT / "examples").glob("*.yml"))
MADE_UP = ["model=m.pt", "data=d.yaml", "keep_macs=0.5"]


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def blocks(text):
    """Fenced code: the language, what stands in the line before it, and the code."""
    found = re.findall(
        r"^(?:<!-- (.+?) -->\n)?( *)```(\w*)[^\n]*\n(.*?)^ *```$", text, flags=re.MULTILINE | re.DOTALL
    )
    return [(language, mark, code) for mark, _, language, code in found]


def commands_in(text):
    """Every ``yolo-prune ...`` of a page's code, as words: lines of blocks, and code within sentences."""
    code = "\n".join(code for language, _, code in blocks(text) if language in ("", "bash", "sh", "console"))
    lines = re.findall(
        r"^(?:[#$ ]|[A-Z_]+=\S+ )*yolo-prune (.+)$", code.replace("\\\n", " "), flags=re.MULTILINE
    )
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    inline = [" ".join(one.split()) for one in re.findall(r"`yolo-prune ([^`]+)`", prose)]
    for line in [*lines, *inline]:
        words = [word for word in shlex.split(line, comments=True) if word != "..."]
        yield from ([*one] for one in product(*map(alternatives, words)))


def alternatives(word):
    """``format=onnx|ncnn`` stands for two words."""
    key, equals, value = word.partition("=")
    return [f"{key}{equals}{one}" for one in value.split("|")]


def commands_of_workflow(text):
    """Every ``yolo-prune ...`` that a workflow runs, as words."""
    steps = [step for job in yaml.safe_load(text)["jobs"].values() for step in job["steps"]]
    runs = [line for step in steps for line in step.get("run", "").splitlines()]
    return [shlex.split(line)[1:] for line in runs if line.startswith("yolo-prune ")]


def refusal(words, monkeypatch, capsys):
    """What the command line says to words that it does not take, without running what it takes; None where it does."""
    if not words or not words[0].islower() or words[0].startswith("-"):
        return None  # the name alone, COMMAND, --version
    for name, command in COMMANDS.items():
        monkeypatch.setitem(COMMANDS, name, replace(command, call=lambda config: None))
    recipes = [word for word in words if word.startswith("cfg=") and not (ROOT / word[4:]).exists()]
    words = [word for word in words if word not in recipes] + (MADE_UP if recipes else [])
    if len(words) == 1 and words[0] in COMMANDS:
        return None  # a command is named
    monkeypatch.chdir(ROOT)
    return capsys.readouterr().err if main(words) else None


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_of_a_page_is_one_that_parses(page, monkeypatch, capsys):
    found = {
        " ".join(words): refusal(words, monkeypatch, capsys) for words in commands_in(page.read_text("utf-8"))
    }
    assert not {words: said for words, said in found.items() if said}


@pytest.mark.parametrize("recipe", RECIPES, ids=name_of)
def test_every_command_of_a_recipe_is_one_that_parses(recipe, monkeypatch, capsys):
    found = re.findall(r"^#\s+yolo-prune (.+)$", recipe.read_text("utf-8"), flags=re.MULTILINE)
    assert found
    assert not [said for line in found if (said := refusal(shlex.split(line), monkeypatch, capsys))]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=name_of)
def test_every_command_of_a_workflow_is_one_that_parses(workflow, monkeypatch, capsys):
    found = commands_of_workflow(workflow.read_text("utf-8"))
    assert found
    assert not [said for words in found if (said := refusal(words, monkeypatch, capsys))]


def test_a_command_that_does_not_parse_is_seen(monkeypatch, capsys):
    page = "Try `yolo-prune prune model=a.pt data=d.yaml keep_mac=0.5`:\n\n```\nyolo-prune evaluate model=a.pt \\\n  data=b\n```\n"
    found = [refusal(words, monkeypatch, capsys) for words in commands_in(page)]
    assert ["unknown command 'evaluate'" in found[0], "keep_mac" in found[1]] == [True, True]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_of_python_compiles(page):
    for language, _, code in blocks(page.read_text("utf-8")):
        if language == "python":
            compile(code, page.name, "exec")


def anchors_of(text):
    """The anchors of a page's headings, as the site and most viewers make them."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    titles = [
        re.sub(r"\[([^]]+)\]\([^)]*\)", r"\1", line)
        for line in re.findall(r"^#+ (.+)$", prose, flags=re.MULTILINE)
    ]
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}


def dead_links(page, text):
    """Relative links of a page that lead nowhere: no such file, or no such heading in it."""
    for target in re.findall(
        r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    ):
        if target.partition(":")[0] in ("http", "https", "mailto"):
            continue
        file, _, anchor = target.partition("#")
        place = (page.parent / file).resolve() if file else page
        if not place.exists() or (
            anchor and anchor not in anchors_of(text if place == page else place.read_text("utf-8"))
        ):
            yield target
        elif page.parent.name == "docs" and place.parent != page.parent:
            yield f"{target}: the site holds docs alone"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_of_a_page_leads_somewhere(page):
    assert not list(dead_links(page, page.read_text("utf-8")))


def test_a_dead_link_is_seen():
    text = "# A page\n[a](no.md) [b](#a-page) [c](#another) [d](../README.md) [e](https://example.org)"
    assert [*dead_links(ROOT / "docs" / "faq.md", text)] == [
        "no.md",
        "#another",
        "../README.md: the site holds docs alone",
    ]


def plot_results():
    spec = importlib.util.spec_from_file_location("plot_results", ROOT / "scripts" / "plot_results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_and_the_table_of_results_are_those_of_the_numbers():
    rows = json.loads((ROOT / "docs" / "results.json").read_text("utf-8"))["rows"]
    script = plot_results()
    assert script.draw(rows) == (ROOT / "docs" / "results.svg").read_text("utf-8"), (
        "python scripts/plot_results.py"
    )
    assert script.table(rows) in (ROOT / "docs" / "results.md").read_text("utf-8")
    shown = script.table(rows).splitlines()
    for line in re.findall(
        r"^\| .*(?:parent|pruned|Torch).*$", (ROOT / "README.md").read_text("utf-8"), flags=re.MULTILINE
    ):
        assert line in shown, "a row of the README is none of the numbers"
