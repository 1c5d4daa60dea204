"""A model that only the host trained is told from a cut one, whatever the classes made of its shapes."""

import csv

import pytest
import torch
from tiny_host import cut, draw, tiny
from torch import nn
from ultralytics import YOLO
from ultralytics.nn import tasks

import yolo_prune
from yolo_prune.adapters.checkpoint import load_detector, save_detector
from yolo_prune.adapters.ultralytics.recognise import is_cut
from yolo_prune.adapters.ultralytics.training.attach import train_from_config
from yolo_prune.adapters.ultralytics.training.history import EARLIER_RUN_KEY, RUN_KEY, carried
from yolo_prune.cost import count_parameters
from yolo_prune.cut.budget import BUDGETS, TARGETS
from yolo_prune.errors import ConfigError
from yolo_prune.options import TrainConfig

KINDS = ", ".join((*BUDGETS, *TARGETS))

HOST = {"imgsz": 64, "batch": 8, "epochs": 1, "device": "cpu", "mosaic": 0.0, "amp": False, "plots": False}
HOST |= {"optimizer": "SGD", "seed": 1, "exist_ok": True, "verbose": False, "val": False}


def grown_from(name: str, before: int, after: int, cls=tasks.DetectionModel) -> nn.Module:
    """What the host makes of a model for ``before`` classes that is trained on ``after``."""
    parent = cls(tasks.yaml_model_load(name), nc=before, verbose=False)
    module = cls(tasks.yaml_model_load(name), nc=after, verbose=False)
    module.load(parent, verbose=False)
    return module


def halve_a_class_branch(module: nn.Module, level: int, keep: int) -> None:
    """Cut the inner width of one class branch, old style: Conv, Conv, Conv2d."""
    first, second, _ = module.model[-1].cv3[level]
    first.conv.weight = nn.Parameter(first.conv.weight.detach()[:keep].clone())
    for norm, names in ((first.bn, ("weight", "bias")),):
        for name in names:
            setattr(norm, name, nn.Parameter(getattr(norm, name).detach()[:keep].clone()))
        norm.running_mean, norm.running_var = norm.running_mean[:keep], norm.running_var[:keep]
    second.conv.weight = nn.Parameter(second.conv.weight.detach()[:, :keep].clone())


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("yolo11n.yaml", 80, 3),
        ("yolov8n.yaml", 3, 80),  # narrower than its own classes would get
        ("yolov5nu.yaml", 365, 3),
        ("yolov10n.yaml", 80, 3),
        ("yolo26n.yaml", 80, 3),
        ("yolov8n-segment", 80, 3),
    ],
)
def test_what_the_host_makes_of_other_classes_is_not_cut(name, before, after):
    cls = tasks.DetectionModel
    if name.endswith("-segment"):
        name, cls = "yolov8n-seg.yaml", tasks.SegmentationModel
    module = grown_from(name, before, after, cls)
    stock = cls(tasks.yaml_model_load(name), nc=after, verbose=False).state_dict()
    differ = [key for key, tensor in module.state_dict().items() if stock[key].shape != tensor.shape]
    assert not is_cut(module)
    keeps_the_branch = hasattr(tasks.BaseModel, "_remap_cls_by_names")  # newer hosts
    assert bool(differ) == keeps_the_branch  # else the test would say nothing
    assert is_cut(cut(module))


def test_the_head_of_rtdetr_follows_its_classes():
    description = tasks.yaml_model_load("rtdetr-resnet50.yaml")
    module = tasks.RTDETRDetectionModel(description, nc=3, verbose=False)
    module.model[-1].denoising_class_embed = nn.Embedding(7, 256)
    assert not is_cut(module)
    module.model[-1].denoising_class_embed = nn.Embedding(7, 128)
    assert is_cut(module)


def test_class_branches_that_no_number_of_classes_explains_are_cut():
    one_level = grown_from("yolov8n.yaml", 80, 3)
    halve_a_class_branch(one_level, 0, 40)
    assert is_cut(one_level)
    narrower_than_any = tasks.DetectionModel(tasks.yaml_model_load("yolov8n.yaml"), nc=3, verbose=False)
    for level in range(3):
        halve_a_class_branch(narrower_than_any, level, 40)
    assert is_cut(narrower_than_any)


@pytest.mark.parametrize("task", ["detect", "segment", "pose", "obb", "classify"])
def test_a_cut_model_is_told_from_a_stock_one(task):
    module = tiny(task)
    assert not is_cut(module)
    assert is_cut(cut(module))
    if task == "classify":
        module.model[-1].linear = nn.Linear(1280, 7)  # as the host changes it for other classes
        assert not is_cut(module)
    assert not is_cut(nn.Linear(2, 2))


def test_a_list_that_lost_a_block_is_cut_though_no_width_says_so():
    config = tasks.yaml_model_load("yolov5n.yaml")
    config["scales"], config["scale"] = {"n": [1.0, 0.125, 256]}, "n"
    module = tasks.DetectionModel(config, nc=2, verbose=False)
    assert not is_cut(module)
    del module.model[4].m[-1]
    assert is_cut(module)


def test_four_channels_of_input_are_no_cut():
    module = tasks.DetectionModel(tasks.yaml_model_load("yolov8n.yaml"), ch=4, nc=2, verbose=False)
    assert not is_cut(module)


def test_the_record_decides_before_the_shapes():
    assert is_cut(tiny(), {"role": "pruned"})
    assert is_cut(tiny(), {"role": "retrained"})
    assert not is_cut(cut(tiny()), {"role": "training", "cut": False})
    assert is_cut(tiny(), {"role": "parent", "cut": True})
    assert is_cut(cut(tiny()), {"role": "parent", "cut": None})  # not known: the shapes decide
    assert not is_cut(tiny(), {"role": "parent"})


def test_where_only_a_record_could_say_a_line_says_so(caplog):
    caplog.set_level("INFO", "yolo_prune")
    is_cut(grown_from("yolov8n.yaml", 80, 3))
    strange = tiny()
    strange.yaml["backbone"][0][2] = "ClassOfTheirOwn"
    assert not is_cut(strange)
    assert [record.getMessage() for record in caplog.records if record.name == "yolo_prune"] == [
        "the class branches are 80 channels wide, as the host builds them for 80 classes and keeps them for fewer: "
        "without a record the model counts as never pruned.",
        "the model cannot be built from its description: without a record it counts as never pruned.",
    ]


@pytest.mark.shared
def test_the_models_in_use_are_not_cut(shared):
    for name in ("bccd_yolov5nu.pt", "bccd_yolo11n.pt", "yolov5n_ultralytics_coco_backbone.pt"):
        loaded = load_detector(shared / "weights" / name)
        assert not is_cut(loaded.module, loaded.meta), name


@pytest.fixture(scope="module")
def host_trained(tmp_path_factory):
    """An 80-class nano model that the host itself trained on three classes."""
    folder = tmp_path_factory.mktemp("host")
    data = draw(folder / "three", classes=3)
    start = save_detector(
        folder / "start.pt", YOLO("yolo11n.yaml").model, task="detect", train_args={"imgsz": 64}, meta={}
    )
    model = YOLO(start)
    model.train(data=str(data), project=str(folder), name="host", **HOST)
    return folder / "host/weights/last.pt"


def losses(run) -> list[list[str]]:
    with (run / "results.csv").open(newline="") as file:
        return [[row[key] for key in row if key != "time"] for row in csv.DictReader(file)]


def test_without_a_key_the_command_trains_a_host_trained_model_as_the_host_does(host_trained, data, tmp_path):
    if hasattr(tasks.BaseModel, "_remap_cls_by_names"):  # older hosts build the narrow branch
        assert load_detector(host_trained).module.model[-1].cv3[0][-1].in_channels == 80
    options = {**HOST, "project": str(tmp_path)}  # the data has two classes: the host's business
    YOLO(host_trained).train(data=str(data), name="theirs", **options)
    del options["verbose"]
    given = {"model": str(host_trained), "data": str(data), "verbose": False}
    train_from_config(TrainConfig(**given, train_args={**options, "name": "ours"}))
    assert losses(tmp_path / "ours") == losses(tmp_path / "theirs")
    ours, theirs = (YOLO(tmp_path / run / "weights/last.pt").model.state_dict() for run in ("ours", "theirs"))
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_a_host_trained_model_needs_a_budget_to_be_attached_to(host_trained):
    with pytest.raises(ConfigError, match=rf"^give exactly one budget of {KINDS}; got none\.$"):
        yolo_prune.attach(YOLO(host_trained))


def test_a_cut_model_whose_record_is_lost_has_one_again_after_our_training(data, tmp_path):
    path = save_detector(tmp_path / "cut.pt", cut(tiny()), task="detect", train_args={"imgsz": 64}, meta={})
    host = {**HOST, "project": str(tmp_path), "name": "on", "val": True}
    del host["verbose"]
    train_from_config(TrainConfig(model=str(path), data=str(data), verbose=False, train_args=host))
    best = load_detector(tmp_path / "on/weights/best.pt")
    assert count_parameters(best.module) == count_parameters(cut(tiny()))
    assert is_cut(best.module)
    assert is_cut(tiny(), best.meta)  # by the record alone


def test_a_later_training_is_not_taken_for_the_run_that_cut():
    run = {"settings": {}, "state": {}}
    assert carried({"role": "pruned", RUN_KEY: run}) == {"role": "retrained", EARLIER_RUN_KEY: run}
    assert carried(None) == {"role": "retrained"}
