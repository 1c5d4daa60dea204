"""The images where two models differ: which ones, how right each model is there, what is drawn, and what is embedded."""

import base64
import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from yolo_prune.accuracy.bootstrap import ImageHits
from yolo_prune.accuracy.coco import coco_ap_by_image
from yolo_prune.accuracy.looks import Look, Thing, differing_images, looks_of
from yolo_prune.accuracy.masks import run_lengths
from yolo_prune.errors import DataError
from yolo_prune.report import RunReport, rebuild_report, write_json
from yolo_prune.report.examples import Example, Examples, read_examples, write_examples
from yolo_prune.report.pictures import RIGHT, SIDE, THERE, WRONG, draw
from yolo_prune.runs.measure import examples as stage

CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]


def box(image, x, kind=1, **more):
    return {"image_id": image, "category_id": kind, "bbox": [x, 0, 10, 10], **more}


def scored(found, images=4):
    """Images 1 and 2 hold one cat each, 3 two of them, 4 nothing."""
    truth = [box(1, 0), box(2, 0), box(3, 0), box(3, 50)]
    listed = {"images": [{"id": number} for number in range(1, images + 1)], "categories": CATEGORIES}
    return coco_ap_by_image({**listed, "annotations": truth}, found)[1]


def test_f1_of_an_image_is_worked_out_by_hand():
    sample = scored(
        [
            *(box(1, 0, score=0.9), box(1, 80, score=0.8), box(1, 90, score=0.1)),  # right, wrong, too unsure
            *(box(2, 0, kind=2, score=0.9),),  # of another class
            *(box(3, 0, score=0.25), box(3, 0, score=0.9)),  # twice the same one
        ]
    )
    assert sample.correctness().tolist() == pytest.approx([2 / 3, 0.0, 0.5, 1.0])


def test_the_largest_differences_come_first_and_losses_before_gains():
    before = scored([box(1, 0, score=0.9), box(3, 0, score=0.9)])
    after = scored([box(2, 0, score=0.9), box(3, 0, score=0.9), box(3, 50, score=0.9)])
    found = differing_images(before, after, 6)
    assert [(each.index, each.before) for each in found] == [(0, 1.0), (1, 0.0), (2, pytest.approx(2 / 3))]
    assert [each.index for each in differing_images(before, after, 1)] == [0]
    assert differing_images(before, before, 6) == []
    hits = [ImageHits(np.array(right)) for right in ([True, True, False], [True, False, True])]
    assert [(each.index, each.after) for each in differing_images(*hits, 6)] == [(1, 0.0), (2, 1.0)]


def test_what_is_unsure_is_not_shown_and_shapes_are_those_of_the_task():
    truth = {
        "categories": CATEGORIES,
        "annotations": [box(1, 0, segmentation=[[0, 0, 9, 0, 9, 9]]), box(2, 0)],
    }
    found = [box(1, 3, score=0.9), box(1, 4, kind=2, score=0.5), box(1, 5, score=0.2), box(2, 0, score=0.9)]
    (look,) = looks_of({1: Path("a.jpg")}, truth, found)
    assert look.truth == (Thing("cat", None, (0, 0, 10, 10)),)
    assert look.found == (Thing("dog", 0.5, (4, 0, 10, 10)), Thing("cat", 0.9, (3, 0, 10, 10)))
    assert looks_of({1: Path("a.jpg")}, truth, found, "segmentation")[0].truth[0].mask == [[0, 0, 9, 0, 9, 9]]


def near(picture, at, colour):
    return np.abs(np.array(picture.getpixel(at)) - colour).max() < 40


def test_what_is_drawn_has_the_colour_of_what_it_is():
    pixels = np.zeros((120, 600, 3), dtype=np.uint8)
    truth = (Thing("cat", None, (100, 20, 80, 80)),)
    found = (
        Thing("cat", 0.9, (102, 20, 80, 80)),
        Thing("cat", 0.9, (400, 20, 80, 80)),
        Thing("dog", 0.5, (100, 20, 80, 80)),
    )
    there, seen = draw(pixels, truth), draw(pixels, found[:2], truth)
    assert there.size == (SIDE, SIDE // 5), "half as large"
    assert near(there, (50, 40), THERE)
    assert near(seen, (51, 40), RIGHT)
    assert near(seen, (200, 40), WRONG)
    assert near(draw(pixels, found[2:], truth), (50, 40), WRONG), "another class"
    assert not np.array(draw(pixels, ())).any(), "the control"


def test_masks_corners_and_points_are_drawn():
    pixels = np.zeros((100, 100, 3), dtype=np.uint8)
    mask = run_lengths(np.ones((40, 40), dtype=bool), 30, 30, (100, 100))
    tinted = draw(pixels, [Thing("a", None, (30, 30, 40, 40), mask)])
    assert tinted.getpixel((50, 50))[0] > 50
    turned = draw(pixels, [Thing("a", None, (10, 40, 80, 20), [[10, 50, 50, 40, 90, 50, 50, 60]])])
    assert near(turned, (50, 60), THERE)
    assert not any(turned.getpixel((12, 60))), "no upright box around it"
    points = draw(pixels, [Thing("a", None, (10, 40, 80, 20), None, (50, 50, 1, 70, 50, 0))])
    assert near(points, (50, 50), THERE)
    assert not any(points.getpixel((70, 50))), "nobody sees it"


def job(folder, look):
    return SimpleNamespace(task=SimpleNamespace(look=look, metric="ap"), space=SimpleNamespace(root=folder))


def model(name, found):
    return SimpleNamespace(name=name, module=name, imgsz=32, result=SimpleNamespace(sample=scored(found)))


PARENT, PRUNED = model("parent", [box(1, 0, score=0.9)]), model("pruned", [box(2, 0, score=0.9)])


def noisy(folder, count=4, side=400):
    for index in range(count):
        pixels = np.random.default_rng(index).integers(0, 255, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")


def test_the_page_holds_the_pictures_and_is_made_again_from_the_folder(tmp_path):
    noisy(tmp_path)
    looked = []

    def look(module, imgsz, chosen):
        looked.append((module, imgsz, chosen))
        return [
            Look(tmp_path / f"{index}.png", (Thing("cat", None, (9, 9, 90, 90)),), ()) for index in chosen
        ]

    stage.save_examples(job(tmp_path, look), PARENT, PRUNED)
    assert looked == [("parent", 32, [0, 1]), ("pruned", 32, [0, 1])]
    shown = read_examples(tmp_path)
    assert shown.columns == ("truth", "parent", "pruned")
    assert [(each.name, each.notes) for each in shown.images] == [
        ("0.png", ("1 object", "F1 1.00", "F1 0.00")),
        ("1.png", ("1 object", "F1 0.00", "F1 1.00")),
    ]
    write_json(RunReport(), tmp_path)
    page = rebuild_report(tmp_path).read_text()
    parts = [part.split('"')[0] for part in page.split("data:image/jpeg;base64,")[1:]]
    assert len(parts) == 6
    assert all(Image.open(io.BytesIO(base64.b64decode(part))).size == (SIDE, SIDE) for part in parts)
    (tmp_path / "examples" / "1_truth.jpg").unlink()
    assert rebuild_report(tmp_path).read_text().count("data:image") == 5, "what somebody deleted is missing"
    write_examples(tmp_path, Examples(left_out="Nothing."), {})
    assert [path.name for path in (tmp_path / "examples").iterdir()] == ["examples.json"]
    assert "Nothing." in rebuild_report(tmp_path).read_text()


def test_pictures_stay_below_their_limit(tmp_path, monkeypatch):
    """Noise hardly compresses: quality goes first, then the images with the smaller differences."""
    noisy(tmp_path)
    monkeypatch.setattr(stage, "LARGEST", 75_000)
    look = lambda module, imgsz, chosen: [Look(tmp_path / f"{index}.png", (), ()) for index in chosen]  # noqa: E731
    stage.save_examples(job(tmp_path, look), PARENT, PRUNED)
    files = list((tmp_path / "examples").glob("*.jpg"))
    assert len(files) == 3 * len(read_examples(tmp_path).images) == 3
    assert sum(file.stat().st_size for file in files) <= 75_000


@pytest.mark.parametrize(
    ("parent", "look", "sentence"),
    [
        (PARENT, DataError("a.jpg cannot be read."), "No images are shown: a.jpg cannot be read."),
        (PRUNED, None, "No images are shown: on every one both models are equally right."),
        (
            SimpleNamespace(name="parent", result=SimpleNamespace(sample=None)),
            None,
            "No images are shown: this evaluation says nothing of single images.",
        ),
    ],
)
def test_why_there_are_none_is_said(tmp_path, parent, look, sentence):
    def fail(*_):
        raise look

    stage.save_examples(job(tmp_path, fail), parent, PRUNED)
    assert read_examples(tmp_path) == Examples(left_out=sentence)


def test_a_full_disk_costs_the_pictures_alone(tmp_path, monkeypatch, caplog):
    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(stage, "write_examples", full)
    stage.save_examples(job(tmp_path, None), PRUNED, PRUNED)
    assert "the images of the report cannot be written: No space left on device" in caplog.text
    assert read_examples(tmp_path) is None


def test_a_classifier_s_image_is_shown_once_with_what_each_model_says(tmp_path):
    noisy(tmp_path)
    hits = [
        SimpleNamespace(
            name=name, module=name, imgsz=32, result=SimpleNamespace(sample=ImageHits(np.array(right)))
        )
        for name, right in (("parent", [True, True]), ("pruned", [True, False]))
    ]

    def look(module, imgsz, chosen):
        found = Thing("cat" if module == "parent" else "dog", 0.75)
        return [Look(tmp_path / f"{index}.png", (Thing("cat"),), (found,)) for index in chosen]

    made = job(tmp_path, look)
    made.task.metric = "top1"
    stage.save_examples(made, *hits)
    assert read_examples(tmp_path).images == (
        Example(f"{tmp_path.name}/1.png", ("cat", "cat 0.75", "dog 0.75"), ("1_truth.jpg",)),
    )
