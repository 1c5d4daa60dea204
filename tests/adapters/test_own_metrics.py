"""Masks, key points and oriented boxes are judged by their own AP: against the truth, the host and each other."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from oracle import NAMES, POINTS, Picture, disturbed, oracle, pictures, rectangle, write
from pycocotools import mask as coco_mask
from tiny_host import draw, tiny
from ultralytics.utils import YAML

from yolo_prune.accuracy.bootstrap import draw_images
from yolo_prune.accuracy.looks import differing_images
from yolo_prune.adapters.checkpoint import load_detector, save_detector
from yolo_prune.adapters.ultralytics import evaluate, validator
from yolo_prune.adapters.ultralytics.evaluate import Evaluator, evaluate_detector
from yolo_prune.adapters.ultralytics.export import export_onnx
from yolo_prune.adapters.ultralytics.scoring import METRIC_OF_TASK, detections_of
from yolo_prune.adapters.ultralytics.tasks import open_task
from yolo_prune.errors import DataError

TASKS = list(METRIC_OF_TASK)
PERFECT = {"segment": 1.0, "pose": 1.0, "obb": 0.995}
"""The host's curve falls from its last recall to zero at 1: its mAP of a perfect model is 0.995."""


@pytest.fixture(scope="module", params=TASKS)
def made(request, tmp_path_factory):
    """Images of all shapes, some empty or with an object over the border, and a class that nobody is of."""
    things = pictures(request.param)
    return (
        request.param,
        things,
        write(tmp_path_factory.mktemp(request.param) / "data", request.param, things),
    )


def evaluated(task, told, data, imgsz=160):
    return evaluate_detector(oracle(task, told), data, imgsz=imgsz, batch=3)


def test_the_truth_itself_is_perfect_and_what_is_moved_is_not(made):
    task, things, data = made
    perfect, moved = (evaluated(task, told, data) for told in (things, disturbed(things, 0.1)))
    assert perfect.own.ap == pytest.approx(PERFECT[task], abs=1e-9)
    assert perfect.coco.ap == pytest.approx(1.0, abs=1e-9), "the boxes, too"
    assert 0.2 < moved.own.ap < 0.96 * PERFECT[task]
    assert perfect.scores[METRIC_OF_TASK[task]] == perfect.own.ap
    assert perfect.scores["ap"] == perfect.coco.ap
    assert list(perfect.per_class) == [NAMES[0], NAMES[1]], "a class without objects has no AP"


@pytest.mark.parametrize("share", [0.03, 0.2])
def test_it_agrees_with_the_host(made, share):
    """The host compares masks of a quarter of the input's size, and does not ignore who has no labelled point."""
    task, things, data = made
    result = evaluated(task, disturbed(things, share), data, imgsz=480 if task == "segment" else 160)
    tolerance = {"segment": 0.03, "pose": 0.006, "obb": 1e-9}[task]
    assert result.own.ap == pytest.approx(result.host_map, abs=tolerance)
    assert result.own.ap > 0.2
    assert result.host_scores == (
        {} if task == "obb" else {"map": result.host_map, "map50": result.host_map50}
    )


def test_the_quick_evaluation_and_the_sample_have_the_same_number(made):
    task, things, data = made
    module = oracle(task, disturbed(things, 0.1))
    result = evaluate_detector(module, data, imgsz=160, batch=3)
    quick = Evaluator(data, imgsz=160, batch=3, task=task)
    before = sorted(data.parent.rglob("*"))
    assert quick.accuracy(module) == pytest.approx(result.own.ap, abs=1e-9)
    assert sorted(data.parent.rglob("*")) == before, "nothing is written into the data"
    assert quick(module).ap == result.coco.ap
    every = np.ones((1, len(things)), dtype=int)
    assert result.sample.accuracy(every) == pytest.approx(result.own.ap, abs=1e-9)
    assert result.own.ap != pytest.approx(result.coco.ap, abs=1e-3), "the control: boxes have another AP"
    boxes = result.of_files
    assert (boxes.metric, boxes.value) == ("ap", result.coco.ap)
    said = "upright boxes" if task == "obb" else "boxes"
    assert boxes.notes[0].startswith(
        f"AP is of {said}. The {METRIC_OF_TASK[task]} of the checkpoint is another"
    )
    assert boxes.sample.accuracy(every) == pytest.approx(boxes.value, abs=1e-9), (
        "what its interval is made of"
    )


def renamed_to_test(data, folder):
    """Copy the data: the images become the test split, one of them val."""
    shutil.copytree(data.parent, folder)
    for kind in ("images", "labels"):
        (folder / kind / "val").rename(folder / kind / "test")
        first = min((folder / kind / "test").iterdir())
        (folder / kind / "val").mkdir()
        shutil.copy(first, folder / kind / "val")
    yaml = YAML.load(data) | {"path": str(folder), "val": "images/val", "test": "images/test"}
    YAML.save(folder / data.name, yaml)
    return folder / data.name


@pytest.mark.parametrize("split", ["val", "test"])
def test_single_images_are_shown_with_what_the_task_is_about(made, split, tmp_path):
    """Chosen by their places in the sample; the model that finds the truth is right on each of them."""
    task, things, data = made
    data = data if split == "val" else renamed_to_test(data, tmp_path / "data")
    opened = open_task(
        SimpleNamespace(task=task, names=NAMES), data, split=split, batch=3, device="cpu", workers=0
    )
    perfect, moved = (opened.evaluate(oracle(task, told), 160) for told in (things, disturbed(things, 0.3)))
    assert perfect.sample.correctness().tolist() == [1.0] * len(things)
    worst = int(moved.sample.correctness().argmin())
    chosen = [each.index for each in differing_images(perfect.sample, moved.sample, 2)]
    assert chosen[0] == worst
    looks = opened.look(oracle(task, things), 160, chosen)
    assert len(looks) == len(chosen)
    for place, look in zip(chosen, looks, strict=True):
        assert data.parent.joinpath(look.file).is_file()
        assert sorted(one.label for one in look.found) == sorted(one.label for one in look.truth)
        assert opened.look(oracle(task, things), 160, [place])[0].file == look.file
        for one in look.found:
            assert bool(one.points) == (task == "pose")
            assert isinstance(one.mask, {"segment": dict, "obb": list}.get(task, type(None)))
            centre = np.array(one.box[:2]) + np.array(one.box[2:]) / 2
            near = [np.abs(np.array(t.box[:2]) + np.array(t.box[2:]) / 2 - centre).max() for t in look.truth]
            assert min(near) < 3, "where the truth is"
            if task == "obb":
                corners = np.array(one.mask[0]).reshape(4, 2)
                assert np.abs(corners.mean(axis=0) - centre).max() < 1.5


def test_resampled_matches_are_the_hosts_of_repeated_images():
    from ultralytics.utils.metrics import ap_per_class

    from yolo_prune.adapters.ultralytics.oriented import HostMatches

    rng = np.random.default_rng(0)
    matched = []
    for _ in range(15):
        count, objects = int(rng.integers(0, 8)), rng.integers(0, 3, int(rng.integers(0, 4)))
        right = rng.random((count, 1)) > np.linspace(0.2, 0.9, 10)
        matched.append((right, rng.random(count), rng.integers(0, 4, count), objects))
    draws = draw_images(len(matched), 6, seed=2)
    expected = []
    for weights in draws:
        repeated = [each for each, weight in zip(matched, weights, strict=True) for _ in range(weight)]
        columns = [np.concatenate(column) for column in zip(*repeated, strict=True)]
        expected.append(ap_per_class(*columns)[5].mean())
    found = HostMatches.from_images(matched).accuracy(draws)
    assert found == pytest.approx(expected, abs=1e-12)
    assert np.ptp(found) > 0.02, "the control: draws differ"
    assert np.isnan(HostMatches.from_images(matched[:1]).accuracy(np.zeros((1, 1), dtype=int))).all()


def test_a_mask_of_another_form_in_the_right_box_is_wrong(tmp_path):
    things = pictures("segment")
    data = write(tmp_path / "data", "segment", things)
    told = []
    for picture in things:
        boxed = [thing.box(picture.size) for thing in picture.things]
        outlines = [rectangle(None, (b[:2] + b[2:]) / 2, (b[2:] - b[:2]) / 2, 0.0) for b in boxed]
        made = [
            replace(thing, outline=outline) for thing, outline in zip(picture.things, outlines, strict=True)
        ]
        told.append(Picture(picture.size, made))
    result = evaluated("segment", told, data)
    assert result.coco.ap == pytest.approx(1.0)
    assert result.own.per_class[NAMES[0]] < 0.8, "a disc is 79 % of its box"


def test_masks_that_coco_does_not_look_at_are_not_made(tmp_path, monkeypatch):
    things = pictures("segment")
    data = write(tmp_path / "data", "segment", things)
    told = [Picture(p.size, p.things + disturbed([p], 0.3, seed=3)[0].things) for p in things]
    made, numbers = [], []
    for most in (100, 1):
        monkeypatch.setattr(validator, "DETECTIONS", most)
        monkeypatch.setattr(
            evaluate, "detections_of", lambda *arguments: made.append(detections_of(*arguments)) or made[-1]
        )
        numbers.append(evaluated("segment", told, data).own.ap)
    masks = [sum("segmentation" in each for each in found) for found in made]
    assert masks[0] == len(made[0]) == len(made[1]) == 2 * masks[1] == 28
    assert numbers[0] == numbers[1] == pytest.approx(1.0), "the best of each class are the true ones"


def test_only_labelled_key_points_count(tmp_path):
    things = pictures("pose")
    data = write(tmp_path / "data", "pose", things)

    def shifted(which):
        told = []
        for picture in things:
            moved = []
            for thing in picture.things:
                points = thing.points.copy()
                points[(points[:, 2] > 0) == which, 0] += 15
                moved.append(type(thing)(thing.kind, thing.outline, points))
            told.append(Picture(picture.size, moved))
        return evaluated("pose", told, data).own.ap

    assert any((thing.points[:, 2] == 0).any() for picture in things for thing in picture.things)
    assert shifted(False) == pytest.approx(1.0)
    assert shifted(True) < 0.9


def inward(thing, size):
    """A thing whose outline and points are elsewhere, and still inside the image."""
    points = thing.points.copy()
    points[:, :2] += 6 * np.sign(np.array(size) / 2 - points[:, :2])
    return replace(thing.moved(6, 4), points=points)


def test_masks_and_key_points_come_from_annotations_where_there_are_some(tmp_path):
    """The annotations' objects are elsewhere than the labels', so that it is seen which of them count."""
    for task, name, key in (
        ("segment", "instances", "segmentation"),
        ("pose", "person_keypoints", "keypoints"),
    ):
        things = pictures(task)
        data = write(tmp_path / task, task, things)
        moved = [Picture(p.size, [inward(thing, p.size) for thing in p.things]) for p in things]
        annotations = []
        for number, picture in enumerate(moved):
            for thing in picture.things:
                left, top, right, bottom = thing.box(picture.size)
                entry = {"id": len(annotations) + 1, "image_id": number, "category_id": thing.kind + 5}
                entry |= {"bbox": [left, top, right - left, bottom - top], "area": 60.0, "iscrowd": 0}
                outline = thing.outline.clip(0, picture.size).ravel().tolist()
                shapes = {"segmentation": [outline], "keypoints": thing.points.ravel().tolist()}
                annotations.append({**entry, key: shapes[key]})
        images = [
            {"id": number, "file_name": f"{number}.png", "width": p.size[0], "height": p.size[1]}
            for number, p in enumerate(moved)
        ]
        categories = [{"id": kind + 5, "name": name_} for kind, name_ in NAMES.items()]
        file = tmp_path / task / "annotations" / f"{name}_val.json"
        file.parent.mkdir()
        file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
        result = evaluated(task, moved, data)
        assert result.own.ap == pytest.approx(1.0)
        assert result.source == f"COCO JSON {file}"
        if task == "pose":
            assert "an object's area its annotation" in result.evaluator
        assert evaluated(task, things, data).own.ap < 0.9, "the control: the labels are no longer the truth"
        without = [{k: v for k, v in each.items() if k != key} for each in annotations]
        file.write_text(json.dumps({"images": images, "annotations": without, "categories": categories}))
        assert evaluated(task, things, data).source == "YOLO labels"


def distance(one, other):
    """How far a detection is from another, in pixels; scores count a hundred times, other classes are far away."""
    if (one["image_id"], one["category_id"]) != (other["image_id"], other["category_id"]):
        return np.inf
    places = [[*each["bbox"], *each.get("keypoints", ()), 100 * each["score"]] for each in (one, other)]
    return np.abs(np.subtract(*places)).max()


@pytest.mark.parametrize("task", TASKS)
def test_an_exported_file_finds_the_same_shapes_as_its_checkpoint(task, tmp_path, monkeypatch):
    """Of a network that was never trained: it finds many things, and none of them is right."""
    model = tiny(task).eval()
    model.names = {0: "kind0", 1: "kind1"}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d) and module.out_channels == 2 and ".cv3." in name:
            module.bias.data.fill_(-1.0)
    data = draw(tmp_path / "data", task)
    stock = save_detector(tmp_path / "p.pt", model, task=task, train_args={"imgsz": 64}, meta={})
    file = export_onnx(stock, tmp_path / "p.onnx", imgsz=64)
    kept = []
    monkeypatch.setattr(
        evaluate, "detections_of", lambda *arguments: kept.append(detections_of(*arguments)) or kept[-1]
    )
    module = load_detector(stock).module
    results = [
        evaluate_detector(module, data, imgsz=64, exported=each, rect=False, batch=1) for each in (None, file)
    ]
    ours, theirs = kept
    assert len(ours) == len(theirs) > 20
    assert [result.own.ap for result in results] == pytest.approx([results[0].own.ap] * 2, abs=1e-3)
    for mine in sorted(ours, key=lambda each: -each["score"])[:50]:
        other = min(theirs, key=lambda each: distance(mine, each))
        assert distance(mine, other) < 0.05
        if task == "segment":
            overlap = coco_mask.iou([mine["segmentation"]], [other["segmentation"]], [0])[0, 0]
            assert overlap > 0.9 or coco_mask.area(mine["segmentation"]) < 5
    assert task != "segment" or max(coco_mask.area(each["segmentation"]) for each in ours) > 100


def test_sigmas_of_the_data_are_taken(tmp_path):
    things = pictures("pose")
    data = write(tmp_path / "data", "pose", things)
    told = disturbed(things, 0.1)
    usual = evaluated("pose", told, data)
    assert usual.evaluator.endswith("(sigmas 0.333, an object's area 0.53 of its box), YOLO labels")
    with data.open("a") as file:
        file.write("kpt_oks_sigmas: [0.02, 0.03, 0.04]\n")
    strict = evaluated("pose", told, data)
    assert "(sigmas 0.02 0.03 0.04," in strict.evaluator
    assert strict.own.ap < usual.own.ap - 0.2


def test_labels_without_masks_are_an_error_for_a_segmenter(tmp_path):
    data = write(tmp_path / "data", "segment", pictures("segment"))
    for file in (tmp_path / "data" / "labels" / "val").glob("*.txt"):
        kinds = [row.split()[0] for row in file.read_text().splitlines()]
        file.write_text("".join(f"{kind} 0.5 0.5 0.2 0.{2 + at}\n" for at, kind in enumerate(kinds)))
    with pytest.raises(DataError) as error:
        evaluated("segment", pictures("segment"), data)
    assert str(error.value) == (
        f"14 of the 14 objects have no mask in the labels of 'val' in {data}. "
        "A segmenter's label rows are polygons: class x1 y1 x2 y2 x3 y3 ..."
    )


def test_more_poses_than_coco_looks_for_are_told(tmp_path):
    things = pictures("pose")
    many = [things[0].things[0].moved(0.1 * at, 0) for at in range(21)]
    told = [Picture(things[0].size, many), *things[1:]]
    result = evaluated("pose", told, write(tmp_path / "data", "pose", told))
    assert result.notes == (
        "1 images have more than 20 objects of a class, of which COCO's AP of key points can find 20.",
    )
    assert evaluated("pose", things, write(tmp_path / "few", "pose", things)).notes == ()


def test_data_that_was_opened_for_another_task_is_an_error(tmp_path):
    things = pictures("pose")
    data = write(tmp_path / "data", "pose", things)
    with pytest.raises(DataError) as error:
        Evaluator(data, imgsz=160).accuracy(oracle("pose", things))
    assert str(error.value) == (
        "the data was opened for 'detect' and the model's task is 'pose': open it with task='pose'."
    )


def test_key_points_of_two_numbers_are_all_labelled_but_negative_ones(tmp_path):
    from yolo_prune.accuracy.labels import coco_from_yolo

    row = "0 0.5 0.5 0.2 0.4 0.1 0.2 -0.01 0.5\n"
    (tmp_path / "a.txt").write_text(row)
    found = coco_from_yolo(
        ["a.png"],
        [tmp_path / "a.txt"],
        {0: "a"},
        keypoint_columns=4,
        keypoint_size=2,
        size_of=lambda _: (100, 50),
    )
    (annotation,) = found["annotations"]
    assert annotation["keypoints"] == pytest.approx([10, 10, 2, -1, 25, 0])
    assert annotation["num_keypoints"] == 1
    assert POINTS == 3
