"""The code of the pages runs, and the site is built from them without a warning and without a request to elsewhere."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^(?:<!-- (.+?) -->\n)?```python\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
MARKS = ("not run: ", "needs: ", "tested: ")


def programs():
    """Every block of Python with the mark before it: page, number, mark, code."""
    for page in PAGES:
        for number, (mark, code) in enumerate(BLOCK.findall(page.read_text("utf-8")), 1):
            yield pytest.param(mark, code, id=f"{page.stem}-{number}")


@pytest.mark.parametrize(("mark", "code"), [*programs()])
def test_a_block_of_python_runs_or_says_why_not(mark, code, tmp_path, monkeypatch):
    kind, _, what = mark.partition(": ")
    assert not mark or f"{kind}: " in MARKS, f"unknown mark '{mark}'"
    if kind in ("not run", "tested"):  # the second kind runs with more checks in tests of its own
        return
    for package in what.split(", ") if kind == "needs" else ():
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    exec(compile(code, "page", "exec"), {"__name__": "page"})


def test_most_blocks_run():
    marks = [program.values[0] for program in programs()]
    assert sum(not mark.startswith("not run") for mark in marks) > 2 * sum(
        mark.startswith("not run") for mark in marks
    )


def test_every_page_has_its_place_on_the_site():
    listed = re.findall(r"[\w]+\.md", yaml.safe_dump(navigation()))
    assert sorted(listed) == sorted(page.name for page in PAGES if page.parent.name == "docs")


def navigation():
    return yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"]


needs_mkdocs = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("mkdocs", "material", "mkdocstrings")),
    reason='the site is not built here: pip install "yolo-prune[docs]"',
)
FROM_ELSEWHERE = re.compile(r"<(?:script|img|iframe|link)\b[^>]*?(?:src|href)=[\"']?(?:https?:)?//[^\"' >]+")


@needs_mkdocs
def test_the_site_is_built_strictly_and_loads_nothing_from_elsewhere(tmp_path):
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--site-dir",
        str(tmp_path / "site"),
    ]
    known = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=known, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    pages = {page.name: page.read_text("utf-8") for page in (tmp_path / "site").glob("*.html")}
    assert {"index.html", "api.html", "faq.html", "examples.html"} <= pages.keys()
    assert not {name: found for name, text in pages.items() if (found := FROM_ELSEWHERE.findall(text))}
    assert "keep_macs=FLOAT" in pages["commands.html"]
    assert "PruningSession" in pages["api.html"]
    assert "session.after_epoch()" in re.sub(r"<[^>]+>", "", pages["examples.html"])


def test_what_is_loaded_from_elsewhere_is_seen():
    assert FROM_ELSEWHERE.search('<script async src="https://unpkg.com/x"></script>')
    assert FROM_ELSEWHERE.search("<link rel=stylesheet href=//fonts.example.org>")
    assert not FROM_ELSEWHERE.search('<a href="https://example.org"> <script src="assets/x.js">')
