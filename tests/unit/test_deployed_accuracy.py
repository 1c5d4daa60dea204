"""AP of an exported file: every layout that exporters write is read as what it is, without a host."""

import json
from dataclasses import asdict

import cv2
import numpy as np
import pytest

from yolo_prune.accuracy.box_data import read_boxes
from yolo_prune.accuracy.deployed import DeployedModel, file_accuracy
from yolo_prune.adapters.hosts import hosts
from yolo_prune.bench.judged import FileAccuracy, Judged, judge
from yolo_prune.errors import ConfigError, DataError
from yolo_prune.imgsz import height_width
from yolo_prune.runtimes.detections import ANCHORS, CLASSES, QUERIES, RANKED
from yolo_prune.runtimes.images import letterbox

NAMES = {0: "red", 1: "blue", 2: "grey"}
SHAPES = [(40, 60), (60, 40), (50, 50), (30, 90), (48, 64)]  # height, width
IMGSZ = (64, 96)


def boxes_of(index):
    """Boxes of image number ``index`` as class, x1, y1, x2, y2 in shares of its sides."""
    shift = 0.05 * index
    return [(index % 3, 0.1, 0.2, 0.4 + shift, 0.5), ((index + 1) % 3, 0.5, 0.5 - shift, 0.9, 0.95)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Grey images whose first pixel is their number, and their boxes."""
    folder = tmp_path_factory.mktemp("boxes")
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
    for index, shape in enumerate(SHAPES):
        cv2.imwrite(str(folder / "images" / f"{index}.png"), np.full((*shape, 3), 40 * index, np.uint8))
        rows = [
            f"{label} {(x1 + x2) / 2} {(y1 + y2) / 2} {x2 - x1} {y2 - y1}"
            for label, x1, y1, x2, y2 in boxes_of(index)
        ]
        (folder / "labels" / f"{index}.txt").write_text("\n".join(rows))
    yaml = folder / "data.yaml"
    yaml.write_text("train: images\nval: images\nnames: [red, blue, grey]\n")
    return str(yaml)


class Seer:
    """A runtime that knows the boxes of an image by the brightness of its middle, in the layout that it is told."""

    channels = 3

    def __init__(self, layout, *, stretched=False, names=NAMES, offset=0, ranked_queries=False, moved=0.0):
        self.layout, self.stretched, self.names, self.offset = layout, stretched, names, offset
        self.ranked_queries, self.moved = ranked_queries, moved
        self.batches = []

    def preprocess(self, images):
        assert all(image.shape[:2] == IMGSZ for image in images), "they come on their canvas"
        self.batches.append(len(images))
        return [letterbox(image, IMGSZ) for image in images]

    def infer(self, batch):
        return np.stack([self._output(round(int(image[32, 48, 0]) / 40)) for image in batch]), None

    def as_array(self, output):
        return output.astype(np.float32)

    def _output(self, index):
        found = [(self._canvas(index, box), box[0] + self.offset) for box in boxes_of(index)]
        if self.layout == RANKED:
            rows = [[*corners, 0.9, label] for corners, label in found]
            return np.array(rows + [[0.0] * 6] * 8)
        rows = []
        for (x1, y1, x2, y2), label in found:
            scores = [0.9 * (label == each) for each in self.names]
            tail = [0.9, label] if self.ranked_queries else scores
            rows.append([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, *tail])
            if self.layout == ANCHORS:  # what suppression must drop, at less than half of the score
                rows.append([(x1 + x2) / 2 + 0.3, (y1 + y2) / 2, x2 - x1, y2 - y1, *(np.array(tail) / 3)])
        array = np.array(rows + [[0.0] * len(rows[0])] * 9)
        if self.layout == QUERIES:
            array[:, :4] /= np.tile(IMGSZ[::-1], 2)
            return array
        return array.T

    def _canvas(self, index, box):
        (height, width), (tall, wide) = SHAPES[index], height_width(IMGSZ)
        corners = np.array(box[1:]) + self.moved
        if self.stretched:
            return corners * np.array([wide, tall, wide, tall])
        scale = min(tall / height, wide / width)
        new_height, new_width = round(height * scale), round(width * scale)
        left, top = (wide - new_width) // 2, (tall - new_height) // 2
        return corners * np.tile([new_width, new_height], 2) + np.tile([left, top], 2)


def model(layout, **changes):
    values = {
        "task": "detect",
        "names": NAMES,
        "labels": (0, 1, 2),
        "layout": layout,
        "imgsz": IMGSZ,
        **changes,
    }
    return DeployedModel(**values)


def ap(seer, data, batch=2, **changes):
    return file_accuracy(seer, model(seer.layout, **changes), data, imgsz=IMGSZ, batch=batch)


@pytest.mark.parametrize("stretched", [False, True], ids=["padded", "stretched"])
@pytest.mark.parametrize("layout", [ANCHORS, RANKED, QUERIES])
def test_the_truth_in_any_layout_has_an_ap_of_one(layout, stretched, data):
    found = ap(Seer(layout, stretched=stretched), data, stretched=stretched)
    assert (found.metric, found.value, found.images) == ("ap", pytest.approx(1.0), len(SHAPES))
    assert found.notes == ()


def test_control_boxes_that_lie_elsewhere_have_a_lower_one(data):
    assert ap(Seer(ANCHORS, moved=0.06), data).value < 0.7
    assert ap(Seer(ANCHORS, stretched=True), data).value < 0.7, "stretched boxes, read as padded ones"
    wrong = file_accuracy(Seer(ANCHORS), model(QUERIES), data, imgsz=IMGSZ, batch=1)
    assert wrong.value < 0.1, "another layout"


def test_queries_that_end_in_score_and_class_are_read_as_such(data):
    assert ap(
        Seer(QUERIES, stretched=True, ranked_queries=True), data, stretched=True
    ).value == pytest.approx(1.0)


def test_labels_that_count_from_one_are_those_of_the_file(data):
    labels = {"labels": (1, 2, 3)}
    assert ap(Seer(RANKED, offset=1), data, **labels).value == pytest.approx(1.0)
    assert ap(Seer(RANKED, offset=1), data).value < 0.5, "the control: read as counting from zero"


def test_a_fixed_batch_is_filled_up_and_its_rest_forgotten(data):
    seer = Seer(ANCHORS)
    assert ap(seer, data, batch=3).value == pytest.approx(1.0)
    assert seer.batches == [3, 3]


def test_a_file_that_drops_boxes_itself_says_so(data):
    (note,) = ap(Seer(RANKED), data, suppresses=True).notes
    assert (
        note
        == "The file suppresses boxes by itself, at its own thresholds: what it dropped is not in this AP."
    )


def test_other_classes_are_refused_and_other_names_are_said(data):
    with pytest.raises(DataError, match=r"^the file has 2 classes and .*data\.yaml has 3\.$"):
        ap(Seer(ANCHORS), data, names={0: "red", 1: "blue"})
    (note,) = ap(Seer(ANCHORS), data, names={0: "rot", 1: "blau", 2: "grau"}).notes
    assert note == "The class names of the file and of the data differ: classes were matched by index."


def test_oriented_boxes_have_no_ap_here(data):
    with pytest.raises(
        ConfigError, match="AP of a file is of upright boxes, and this file is a model of the task 'obb'"
    ):
        ap(Seer(ANCHORS), data, task="obb")


def test_timed_files_are_judged_one_after_the_other_and_what_fails_is_why(data, tmp_path):
    seen = []

    def watch(items, what):
        seen.append((len(items), what))
        yield from items

    names = ("right", "moved", "oriented", "of nobody", "never timed")
    request = json.loads(json.dumps(Judged(read_boxes(data).part(4), names).save(tmp_path / "data")))
    runtimes = {name: Seer(ANCHORS, moved=0.06 * (name == "moved")) for name in names[:4]}
    models = {name: lambda: model(ANCHORS) for name in names}
    models |= {"oriented": lambda: model(ANCHORS, task="obb"), "of nobody": lambda: None}
    found = judge(request, runtimes, models, dict.fromkeys(names, IMGSZ), 1, watch)
    assert list(found) == list(names[:4])
    right = found["right"]
    assert (right.metric, right.value, right.images) == ("ap", pytest.approx(1.0), 4)
    assert right.low <= right.value <= right.high + 1e-9
    assert found["moved"].value < 0.7
    assert found["oriented"].not_measured == (
        "AP of a file is of upright boxes, and this file is a model of the task 'obb'"
    )
    assert found["of nobody"].not_measured == "the file does not say its task, classes and image size"
    assert seen == [(4, "Evaluating")] * 2
    sent = json.loads(json.dumps(asdict(right)))
    assert FileAccuracy.read(sent) == right


def test_a_classifier_is_scored_by_its_best_class(tmp_path):
    for index, name in enumerate("abc"):
        for split in ("train", "val"):
            (tmp_path / split / name).mkdir(parents=True)
            cv2.imwrite(str(tmp_path / split / name / "a.png"), np.full((8, 8, 3), 80 * index, np.uint8))

    class Classifier(Seer):
        def preprocess(self, images):
            return [int(image[0, 0, 0]) // 80 for image in images]

        def infer(self, batch):
            return np.stack([np.roll([0.8, 0.1, 0.1], min(index, 1)) for index in batch]), None

    found = file_accuracy(
        Classifier(CLASSES),
        model(CLASSES, task="classify", names=dict(enumerate("abc"))),
        str(tmp_path),
        imgsz=8,
        batch=2,
    )
    assert (found.metric, found.value, found.images) == ("top1", pytest.approx(2 / 3), 3)


def said(metadata):
    found = [host.read_export(metadata) for host in hosts()]
    assert sum(one is not None for one in found) <= 1, "two hosts take it for theirs"
    return next((one for one in found if one is not None), None)


@pytest.mark.parametrize(
    ("extra", "layout", "stretched", "suppresses"),
    [
        ({}, ANCHORS, False, False),
        ({"end2end": "False", "args": "{'nms': None}"}, ANCHORS, False, False),
        ({"end2end": "True"}, RANKED, False, False),
        ({"args": "{'nms': True}"}, RANKED, False, True),
        ({"head": "RTDETRDecoder"}, QUERIES, True, False),
        ({"description": "Ultralytics rtdetr-l model"}, QUERIES, True, False),
    ],
)
def test_what_the_first_host_writes_into_its_files_is_understood(extra, layout, stretched, suppresses):
    found = said({"task": "detect", "names": "{0: 'a', 1: 'b'}", "imgsz": "[32, 64]", **extra})
    assert (found.layout, found.stretched, found.suppresses) == (layout, stretched, suppresses)
    assert (found.names, found.labels, found.imgsz) == ({0: "a", 1: "b"}, (0, 1), (32, 64))


def test_what_the_second_host_writes_into_its_files_is_understood():
    facts = {
        "task": "detect",
        "classes": '["a", "b"]',
        "labels": "[3, 7]",
        "imgsz": "320",
        "stretched": "true",
    }
    found = said(facts)
    assert (found.layout, found.stretched, found.suppresses) == (RANKED, True, True)
    assert (found.names, found.labels, found.imgsz) == ({0: "a", 1: "b"}, (3, 7), 320)
    assert said({**facts, "task": "classify"}).layout == CLASSES


@pytest.mark.parametrize(
    "metadata", [{}, {"task": "detect"}, {"names": "os.remove('a')", "task": "x", "imgsz": "3"}]
)
def test_a_file_of_nobody_says_nothing(metadata):
    assert said(metadata) is None
