"""The picture of a network: a bar for each group, what is frozen and why, what a plan keeps, in three kinds of files."""

import re
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from PIL import Image
from torch import nn

from yolo_prune import cli, prune_module
from yolo_prune.cut.proven import Anatomy
from yolo_prune.errors import ConfigError, PlanError
from yolo_prune.report.network import Width, check_ending, draw_network, widths_of, write_network
from yolo_prune.runs import inspection
from yolo_prune.runs.inspection import describe_groups

SVG = "{http://www.w3.org/2000/svg}"
WIDTHS = [
    Width("model.0", 16, 8, "", ("model.0", "model.1"), 0.5),
    Width("model.1", 64, 64, "read by 'view'", ("model.1",), 0.25),
    Width("model.2.with.a.name.that.is.far.too.long.conv", 4, 0, ""),
    Width("model.3", 64, 64, "read by 'view'"),
    Width("model.4", 64, 64, "an <operator> that nobody knows"),
]


def build():
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 16, 1), nn.ReLU(), nn.Conv2d(16, 4, 1)),
    ).eval()


def described(net, plan=None):
    return describe_groups(net, Anatomy(torch.zeros(1, 3, 8, 8)).cost_of(net), plan)


def shapes(text):
    """Bars and texts of an SVG: (title, colour, length) and strings."""
    tree = ElementTree.fromstring(text)
    bars = [
        (bar.findtext(f"{SVG}title"), bar.get("fill"), float(bar.get("width")))
        for bar in tree.iter(f"{SVG}rect")
        if bar.find(f"{SVG}title") is not None
    ]
    return bars, ["".join(one.itertext()) for one in tree.iter(f"{SVG}text")]


@pytest.fixture
def svg(tmp_path):
    file = write_network(tmp_path / "out.svg", "best.pt", WIDTHS, planned=True)
    return file.read_text("utf-8")


def test_a_bar_is_as_long_as_the_root_of_its_width_and_filled_as_far_as_it_is_kept(svg):
    bars, _ = shapes(svg)
    of = {}
    for title, colour, length in bars:
        of.setdefault(title.partition(":")[0], []).append((colour, length))
    (track, whole), (fill, kept) = of["model.0"]
    assert track != fill
    assert whole == pytest.approx(of["model.1"][0][1] / 2, abs=0.1), "16 of 64 channels"
    assert kept == pytest.approx(whole / 2**0.5, abs=0.1), "8 of 16"
    assert of["model.1"][1][0] != fill, "frozen has a colour of its own"
    assert len(of["model.2.with.a.name.that.is.far.too.long.conv"]) == 1, "nothing of it is kept"


def test_why_is_said_under_the_mouse_and_in_numbered_notes(svg):
    bars, texts = shapes(svg)
    assert any("frozen: an <operator> that nobody knows" in title for title, *_ in bars)
    assert "(1) read by 'view': 2 groups" in texts, "the most frequent reason comes first"
    assert "(2) an <operator> that nobody knows: 1 group" in texts
    assert sum(text.endswith("64/64 (1)") or "64/64 (1)" in text for text in texts) == 2
    assert any("8/16" in text for text in texts)
    assert any(
        text.startswith("5 groups of 212 channels; 3 groups of 192 are frozen. 200 channels stay.")
        for text in texts
    )


def test_one_reason_in_many_places_is_one_note_and_the_place_is_said_under_the_mouse():
    many = [
        Width(f"layers.{n}", 8, 8, f"is split by a reshape in 'layers.{n}'; is an output in 'net'")
        for n in range(12)
    ]
    drawing = draw_network("deep", many, planned=False)
    assert drawing.notes == ("is split by a reshape; is an output: 12 groups",)
    titles = [shape.title for shape in drawing.columns[0]]
    assert sum("is split by a reshape in 'layers.7'" in title for title in titles) == 4
    others = draw_network("odd", [Width("a", 8, 8, f"reason {n}") for n in range(11)], planned=False)
    assert len(others.notes) == 9
    assert sum(shape.text == "8 (frozen)" for shape in others.columns[0]) == 2, "the rarest have no number"


def test_without_a_plan_nothing_is_said_of_what_goes(tmp_path):
    whole = [Width(one.name, one.width, one.width, one.frozen) for one in WIDTHS]
    text = write_network(tmp_path / "out.svg", "best.pt", whole, planned=False).read_text("utf-8")
    _, texts = shapes(text)
    assert "channels that can be cut" in texts
    assert not {"channels that go", "channels that stay"} & set(texts)
    assert not any("16/16" in one for one in texts)


def test_a_page_loads_nothing_and_says_everything(tmp_path):
    text = write_network(tmp_path / "out.html", "a <model>", WIDTHS, planned=True).read_text("utf-8")
    assert not re.search(r"(src|href)=|url\(|https?://", text)
    assert "a &lt;model&gt;" in text
    assert "<li>an &lt;operator&gt; that nobody knows: 1 group</li>" in text
    assert text.count("<title>model.1: 64 of 64 channels stay") >= 1


def test_a_large_network_stands_in_columns():
    many = [Width(f"layer.{number}", 8, 8, "") for number in range(250)]
    drawing = draw_network("large", many, planned=False)
    assert len(drawing.columns) == 6
    rows = [sum(1 for shape in column if shape.end) for column in drawing.columns]
    assert sum(rows) == 250
    assert max(rows) - min(rows) <= 5
    assert len(draw_network("small", WIDTHS, planned=False).columns) == 1


def test_a_png_is_a_picture_of_that_size(tmp_path):
    file = write_network(tmp_path / "deep" / "out.PNG", "best.pt $x$", WIDTHS, planned=True)
    with Image.open(file) as image:
        assert image.width == 2 * 2 * 372
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 20)}
    assert {(11, 122, 143), (152, 164, 176), (255, 255, 255)} <= colours


def test_other_endings_are_refused_before_a_model_is_loaded(capsys):
    with pytest.raises(ConfigError, match=r"^plot= draws \.html, \.svg, \.png, got 'out\.pdf'\.$"):
        check_ending("out.pdf")
    assert cli.main(["inspect", "model=no_such.pt", "plot=out.pdf"]) == 2
    assert "plot= draws .html, .svg, .png, got 'out.pdf'." in capsys.readouterr().err


def test_a_plan_says_what_is_kept_of_each_group():
    net = build()
    plan = prune_module(net, torch.rand(1, 3, 8, 8), keep_macs=0.4, criterion="l1")
    rows = described(build(), plan)
    assert [row["width"] for row in rows] == [32, 16, 4]
    assert [row["kept"] for row in rows] == [net[0].out_channels, net[3].out_channels, 4]
    assert rows[0]["kept"] < 32, "the control: something went"
    assert [one.kept for one in widths_of(rows)] == [row["kept"] for row in rows]
    assert all("kept" not in row for row in described(build()))


def test_a_plan_of_another_model_is_refused():
    net = build()
    plan = prune_module(net, torch.rand(1, 3, 8, 8), keep_macs=0.4, criterion="l1")
    with pytest.raises(PlanError):
        described(nn.Sequential(nn.Conv2d(3, 8, 3)).eval(), plan)


def test_inspect_draws_and_says_where(tmp_path, capsys, monkeypatch):
    net = build()
    plan = prune_module(net, torch.rand(1, 3, 8, 8), keep_macs=0.4, criterion="l1").save(
        tmp_path / "plan.json"
    )
    opened = (build(), Anatomy(torch.zeros(1, 3, 8, 8)))
    monkeypatch.setattr(inspection, "_opened", lambda *_: opened)
    assert cli.main(["inspect", "model=m.pt", f"plan={plan}", f"plot={tmp_path / 'out.html'}"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split()[:3] == ["group", "width", "kept"]
    assert out.splitlines()[-1] == f"plot: {tmp_path / 'out.html'}"
    assert f"cut by {plan}" in (tmp_path / "out.html").read_text("utf-8")
    assert cli.main(["inspect", "model=m.pt", "plan=no.json"]) == 2
    assert "the plan 'no.json' cannot be read: No such file or directory." in capsys.readouterr().err
