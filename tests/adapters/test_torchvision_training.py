"""What the loop feeds a network, and what the classes of a network are called."""

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip("torchvision")

from yolo_prune.accuracy.box_data import read_boxes
from yolo_prune.adapters.torchvision.build import coco_names
from yolo_prune.adapters.torchvision.described import Described
from yolo_prune.adapters.torchvision.tasks import match_classes
from yolo_prune.adapters.torchvision.training.recipe import check_options, make_recipe
from yolo_prune.adapters.torchvision.training.samples import BoxSamples, Loader
from yolo_prune.errors import ConfigError, DataError
from yolo_prune.runtimes.framing import framed


@pytest.fixture
def data(tmp_path):
    """Images with one white rectangle, of two shapes."""
    for kind in ("images", "labels"):
        (tmp_path / kind / "train").mkdir(parents=True)
    for index, (height, width) in enumerate([(60, 100), (100, 60), (80, 80)]):
        image = np.zeros((height, width, 3), np.uint8)
        top, left, bottom, right = height // 4, width // 3, height // 2, 2 * width // 3
        image[top:bottom, left:right] = 255
        cv2.imwrite(str(tmp_path / "images" / "train" / f"{index}.png"), image)
        box = [
            (left + right) / 2 / width,
            (top + bottom) / 2 / height,
            (right - left) / width,
            (bottom - top) / height,
        ]
        (tmp_path / "labels" / "train" / f"{index}.txt").write_text("0 " + " ".join(f"{v:.6f}" for v in box))
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/train\nnames: [white]\n")
    return read_boxes(tmp_path / "data.yaml", "train")


def bright(image):
    """Return the box around what is white."""
    rows, columns = np.nonzero(image.mean(2) > 200)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


@pytest.mark.parametrize("stretched", [False, True])
def test_boxes_follow_their_images_onto_the_canvas_and_back(data, stretched):
    for file, (boxes, _) in zip(data.image_files, data.targets, strict=True):
        canvas, frame = framed(cv2.imread(str(file)), (64, 96), stretched=stretched)
        assert canvas.shape == (64, 96, 3)
        assert frame.into(boxes)[0] == pytest.approx(bright(canvas), abs=1.5)
        assert frame.back(frame.into(boxes)) == pytest.approx(boxes, abs=1e-3)


@pytest.mark.parametrize("options", [{}, {"fliplr": 1}, {"scale": 0.5}, {"fliplr": 1, "scale": 0.5}])
def test_boxes_follow_every_augmentation(data, options):
    given = {"epochs": 1, "imgsz": 96, "scale": 0, "fliplr": 0, "device": "cpu", **options}
    samples = BoxSamples(data, (7,), make_recipe("detect", given), stretched=False)
    seen = 0
    for seed in range(8):
        for index in range(samples.count):
            canvas, target = samples.read(index, np.random.default_rng(seed))
            boxes, labels = target["boxes"], target["labels"]
            assert canvas.shape == (96, 96, 3)
            assert set(labels.tolist()) <= {7}
            if len(boxes):
                assert boxes[0] == pytest.approx(bright(canvas), abs=2)
                seen += 1
    assert seen > 20


def batches(data, **changes):
    recipe = make_recipe(
        "detect", {"epochs": 1, "imgsz": 64, "batch": 2, "device": "cpu", "workers": 0, **changes}
    )
    return list(Loader(BoxSamples(data, (1,), recipe, stretched=False), recipe).epoch(3))


def test_an_epoch_is_the_same_again_in_any_number_of_processes(data):
    (images, targets), *_ = batches(data)
    (again, same), *_ = batches(data, workers=1)
    assert torch.equal(images, again)
    assert torch.equal(targets[0]["boxes"], same[0]["boxes"])
    assert not torch.equal(images, batches(data, seed=1)[0][0]), "the control: another seed draws otherwise"
    assert images.dtype == torch.float32
    assert 0 <= float(images.min()) <= float(images.max()) <= 1


def test_rates_warm_up_and_fall_along_a_cosine():
    recipe = make_recipe(
        "detect", {"epochs": 3, "imgsz": 64, "lr0": 0.1, "warmup_epochs": 1, "lrf": 0.1, "device": "cpu"}
    )
    rates = [recipe.rate(step, 10) for step in range(30)]
    assert rates[:10] == pytest.approx([0.01 * (step + 1) for step in range(10)])
    assert rates[20] == pytest.approx(0.055)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_a_cut_network_gets_a_fifth_of_the_rate():
    given = {"epochs": 1, "imgsz": 64, "device": "cpu"}
    whole, cut = (make_recipe("classify", given, of_cut_model=cut).lr0 for cut in (False, True))
    assert cut == whole / 5


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"momentun": 0.9}, r"'momentun' is no option of this host's training. Did you mean 'momentum'\?"),
        ({"epochs": 2.5}, r"epochs must be a whole number, got '2.5'"),
        ({"fliplr": 2}, r"fliplr must be between 0 and 1, got 2"),
        ({"lr0": "fast"}, r"lr0 must be a number, got 'fast'"),
    ],
)
def test_options_are_checked(options, text):
    with pytest.raises(ConfigError, match=text):
        check_options(options)


def detector(architecture="torchvision:fasterrcnn_resnet50_fpn", outputs=4, **more):
    return Described(architecture, "detect", outputs, 320, **more)


def test_labels_of_a_detector_begin_behind_the_background():
    assert match_classes(detector(), ["a", "b", "c"], "data") == (1, 2, 3)


@pytest.mark.parametrize("name", ["retinanet_resnet50_fpn", "fcos_resnet50_fpn"])
def test_a_head_without_background_may_begin_at_0(name):
    assert match_classes(detector(f"torchvision:{name}", 3), ["a", "b", "c"], "data") == (0, 1, 2)
    assert match_classes(detector(f"torchvision:{name}", 4), ["a", "b", "c"], "data") == (1, 2, 3)


def test_a_detector_trained_on_coco_is_matched_by_names():
    labels = match_classes(detector(outputs=91), ["person", "stop sign", "toothbrush"], "data")
    assert labels == (1, 13, 90)
    assert [coco_names()[label] for label in labels] == ["person", "stop sign", "toothbrush"]


def test_other_classes_are_refused():
    text = r"the weights tell 3 classes \(and the background\) apart, and data has 2: give the data that they were trained"
    with pytest.raises(DataError, match=text):
        match_classes(detector(), ["a", "b"], "data")
    with pytest.raises(DataError, match=r"the model has 1 classes and data has 2"):
        match_classes(detector(names=("a",), labels=(1,)), ["a", "b"], "data")
    with pytest.raises(DataError, match=r"tell 90 classes"):
        match_classes(detector(outputs=91), ["person", "unicorn"], "data")
