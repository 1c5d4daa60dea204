"""Checkpoints in and out: bad files are refused in a sentence, and no file runs code of its own."""

import copy
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from yolo_prune.adapters.checkpoint import (
    fingerprint,
    load_detector,
    read_metadata,
    save_detector,
    write_metadata,
)
from yolo_prune.errors import CheckpointError

ARCHITECTURE = """
nc: 80
backbone:
  - [-1, 1, Conv, [8, 3, 2]]
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 1, C2f, [16, True]]
  - [-1, 1, SPPF, [16, 5]]
head:
  - [-1, 1, Conv, [16, 3, 2]]
  - [[3, 4], 1, Detect, [nc]]
"""


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory):
    """An architecture of stock layers with a few thousand parameters."""
    file = tmp_path_factory.mktemp("architecture") / "tiny.yaml"
    file.write_text(ARCHITECTURE, "utf-8")
    return file


@pytest.fixture(scope="module")
def tiny(tiny_file):
    return load_detector(tiny_file)


@pytest.fixture
def module(tiny):
    return copy.deepcopy(tiny.module)


class RunsAProgram:
    """A pickle that makes a file when it is loaded in full."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


class BuildsAModel:
    """A pickle of allowed names only, whose activation the host would evaluate."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        from ultralytics.nn.tasks import DetectionModel

        code = f"__import__('os').mkdir({str(self.target)!r})"
        return DetectionModel, ({"nc": 1, "activation": code, "backbone": [], "head": []},)


class ReachesThroughGetattr:
    """A pickle that asks a stock class for what is behind it."""

    def __reduce__(self):
        return getattr, (nn.Conv2d, "__init__")


class Custom(nn.Module):
    """A layer that no host has."""


def save(checkpoint, path, **options):
    torch.save(checkpoint, path, **options)
    return path


def refusal(path, **options):
    with pytest.raises(CheckpointError) as caught:
        load_detector(path, **options)
    return str(caught.value)


# --- code of its own -------------------------------------------------------------------------------------


UNSAFE = (
    "'{file}' wants to load '{name}', which is not a stock class and could run any code. "
    "If you made the file yourself, pass trust=true."
)
UNREADABLE = (
    "'{file}' is pickled in a way that cannot be loaded safely (Unsupported operand 149). "
    "If you made the file yourself, pass trust=true."
)


def write_zip(content, file, protocol):
    torch.save(content, file, pickle_protocol=protocol)


def write_bare(content, file, protocol):
    file.write_bytes(pickle.dumps(content, protocol))


@pytest.mark.parametrize(
    ("write", "protocol", "message"),
    [(write_zip, 2, UNSAFE), (write_zip, 4, UNREADABLE), (write_bare, 2, UNSAFE), (write_bare, 4, UNSAFE)],
)
def test_a_checkpoint_that_wants_to_run_a_program_is_refused_and_does_not_run_it(
    tmp_path, write, protocol, message
):
    target, file = tmp_path / "made", tmp_path / "evil.pt"
    write({"model": RunsAProgram(target)}, file, protocol)
    assert refusal(file) == message.format(file=file, name=f"{os.mkdir.__module__}.mkdir")
    assert not target.exists()


def test_the_same_file_would_run_the_program_under_a_full_unpickler(tmp_path):
    target = tmp_path / "made"
    torch.load(save({"model": RunsAProgram(target)}, tmp_path / "evil.pt"), weights_only=False)
    assert target.is_dir()


def test_a_checkpoint_cannot_call_the_constructor_of_a_stock_class(tmp_path):
    target = tmp_path / "made"
    file = save({"model": BuildsAModel(target)}, tmp_path / "evil.pt")
    assert refusal(file) == (
        f"checkpoint '{file}' cannot be unpickled: "
        "it calls the constructor of 'DetectionModel', which is not allowed."
    )
    assert not target.exists()


def test_a_checkpoint_cannot_reach_through_getattr(tmp_path):
    file = save({"model": ReachesThroughGetattr()}, tmp_path / "evil.pt")
    assert "getattr(_Blank, '__init__') is not allowed in a checkpoint" in refusal(file)


def test_a_custom_class_is_named_and_loads_when_trusted(tmp_path, module):
    module.model[0].act = Custom()
    file = save({"model": module, "train_args": {}}, tmp_path / "custom.pt")
    assert refusal(file) == UNSAFE.format(file=file, name=f"{Custom.__module__}.Custom")
    assert isinstance(load_detector(file, trust=True).module.model[0].act, Custom)


def test_a_trusted_file_that_needs_a_missing_package_says_so_and_installs_nothing(tmp_path, monkeypatch):
    import types

    made_up = types.ModuleType("no_such_package")
    made_up.Layer = type("Layer", (nn.Module,), {"__module__": "no_such_package"})
    monkeypatch.setitem(sys.modules, "no_such_package", made_up)
    file = save({"model": made_up.Layer()}, tmp_path / "x.pt")
    monkeypatch.delitem(sys.modules, "no_such_package")
    assert refusal(file, trust=True) == (
        f"'{file}' cannot be loaded: class 'Layer' of module 'no_such_package' is not found. Install that package, "
        "or pass imports= with the Python file that holds the class."
    )
    assert refusal(file) == (
        UNSAFE.format(file=file, name="no_such_package.Layer").removesuffix(".")
        + " and imports= with the Python file that holds 'Layer'."
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "nc: 1\nactivation: __import__('os').getcwd()\nbackbone: [[-1, 1, Conv, [8, 3, 2]]]\nhead: []\n",
            "'{file}' has activation \"__import__('os').getcwd()\": expected one like 'nn.ReLU()'.",
        ),
        (
            "nc: 1\nbackbone: [[-1, 1, torch_safe_load, ['evil.pt']]]\nhead: []\n",
            "'{file}' names 'torch_safe_load', which is no layer of the host. For a layer of your own pass trust=true "
            "and imports= with the Python file that holds it.",
        ),
        ("nc: 1\n", "'{file}' describes no model: it needs 'backbone' and 'head' rows of 4 items."),
        ("just text\n", "architecture '{file}' is not a readable YAML file."),
        ("nc: [1\n", "architecture '{file}' is not a readable YAML file."),
    ],
)
def test_an_architecture_file_names_layers_only(tmp_path, text, message):
    file = tmp_path / "model.yaml"
    file.write_text(text, "utf-8")
    assert refusal(file) == message.format(file=file)


# --- files that are no checkpoint ------------------------------------------------------------------------


def missing(folder):
    return folder / "none.pt"


def a_folder(folder):
    return folder


def empty(folder):
    (folder / "x.pt").touch()
    return folder / "x.pt"


def text_file(folder):
    (folder / "x.pt").write_text("not a checkpoint", "utf-8")
    return folder / "x.pt"


def lfs_pointer(folder):
    (folder / "x.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "utf-8")
    return folder / "x.pt"


def truncated(folder):
    whole = save({"model": None, "x": torch.zeros(1000)}, folder / "whole.pt").read_bytes()
    (folder / "x.pt").write_bytes(whole[: len(whole) // 2])
    return folder / "x.pt"


def damaged_inside(folder):
    file = save({"model": None}, folder / "x.pt")
    with zipfile.ZipFile(file) as source:
        members = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(file, "w") as target:
        for name, content in members.items():
            target.writestr(name, content[:4] if name.endswith("data.pkl") else content)
    return file


def other_zip(folder):
    with zipfile.ZipFile(folder / "x.pt", "w") as archive:
        archive.writestr("hello.txt", "hello")
    return folder / "x.pt"


def torchscript(folder):
    with zipfile.ZipFile(folder / "x.pt", "w") as archive:
        for name in ("x/data.pkl", "x/constants.pkl", "x/code/__torch__.py"):
            archive.writestr(name, b"")
    return folder / "x.pt"


def state_dict(folder):
    return save(nn.Conv2d(1, 1, 1).state_dict(), folder / "x.pt")


def state_dict_under_a_key(folder):
    return save({"state_dict": nn.Conv2d(1, 1, 1).state_dict()}, folder / "x.pt")


def no_model(folder):
    return save({"epoch": 1}, folder / "x.pt")


def a_tensor(folder):
    return save(torch.zeros(3), folder / "x.pt")


BAD_FILES = [
    (missing, "checkpoint '{file}' does not exist."),
    (a_folder, "'{file}' is a folder, not a checkpoint. Name the *.pt file in it."),
    (empty, "checkpoint '{file}' is empty (0 bytes)."),
    (text_file, "'{file}' is not a PyTorch checkpoint: it starts with b'not a checkp'."),
    (lfs_pointer, "'{file}' is a Git LFS pointer, not the file itself: run 'git lfs pull'."),
    (truncated, "checkpoint '{file}' is truncated or damaged: copy or download it again."),
    (damaged_inside, "checkpoint '{file}' is truncated or damaged: copy it again."),
    (other_zip, "'{file}' is a zip file, but not a PyTorch checkpoint."),
    (torchscript, "'{file}' is a TorchScript export. Prune the *.pt checkpoint it was made from."),
    (
        state_dict,
        "'{file}' holds only weights, without their architecture. Save it with the host's model.save().",
    ),
    (
        state_dict_under_a_key,
        "'{file}' holds only weights, without their architecture. Save it with the host's model.save().",
    ),
    (no_model, "'{file}' holds no model. Save it with the host's model.save()."),
    (a_tensor, "'{file}' holds a Tensor, not a checkpoint of the host."),
]


@pytest.mark.parametrize(("make", "message"), BAD_FILES, ids=lambda value: getattr(value, "__name__", ""))
def test_a_file_that_is_no_checkpoint_is_named_for_what_it_is(tmp_path, make, message):
    file = make(tmp_path)
    assert refusal(file) == message.format(file=file)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "the name of the checkpoint is empty."),
        (
            "https://x.org/a.pt",
            "'https://x.org/a.pt' is an address: download the checkpoint first and name the file.",
        ),
        ("no_such.yaml", "architecture 'no_such.yaml' is neither a file nor one of the host's own."),
        ("my_own_name.pt", "checkpoint 'my_own_name.pt' does not exist."),
    ],
)
def test_a_name_that_is_no_file_is_not_looked_up_on_the_network(monkeypatch, name, message):
    def no_network(*_, **__):
        raise RuntimeError("the network was asked")

    monkeypatch.setattr("ultralytics.utils.downloads.attempt_download_asset", no_network)
    monkeypatch.setattr("requests.get", no_network)
    assert refusal(name) == message


@pytest.mark.parametrize("name", ["yolo11n.pt", "yolo11n"])
def test_an_official_name_is_left_to_the_host_to_download(monkeypatch, tmp_path, tiny, name):
    stored = save_detector(tmp_path / "cache.pt", tiny.module, task="detect", train_args={}, meta={})
    asked = []
    monkeypatch.setattr(
        "ultralytics.utils.downloads.attempt_download_asset",
        lambda wanted: asked.append(wanted) or str(stored),
    )
    monkeypatch.chdir(tmp_path)
    assert load_detector(name).path == stored
    assert asked == ["yolo11n.pt"]


def test_an_official_name_without_a_network_is_one_sentence(monkeypatch, tmp_path):
    def offline(_):
        raise ConnectionError("no route")

    monkeypatch.setattr("ultralytics.utils.downloads.attempt_download_asset", offline)
    monkeypatch.chdir(tmp_path)
    assert refusal("yolo11n.pt") == "'yolo11n.pt' is not here and could not be downloaded: no route"


# --- models that cannot be pruned ------------------------------------------------------------------------


def test_a_fused_model_is_refused(tmp_path, module):
    file = save({"model": module.fuse(verbose=False)}, tmp_path / "fused.pt")
    assert refusal(file) == (
        f"'{file}' is fused: its BatchNorm layers are merged into the convolutions. "
        "Prune the checkpoint that training wrote (weights/best.pt)."
    )


def test_a_quantisation_aware_model_is_refused(tmp_path, module):
    file = save({"model": module, "modelopt": {"some": "state"}}, tmp_path / "qat.pt")
    assert refusal(file) == f"'{file}' is quantised. Prune the model first and quantise the pruned one."


def test_a_quantised_layer_is_refused(tmp_path, module):
    module.model[0].act = torch.ao.nn.quantized.ReLU6() if hasattr(torch.ao.nn, "quantized") else None
    if module.model[0].act is None:
        pytest.skip("this torch has no torch.ao.nn.quantized")
    file = save({"model": module}, tmp_path / "int8.pt")
    assert refusal(file) == f"'{file}' is quantised. Prune the model first and quantise the pruned one."


def test_a_model_without_batchnorm_is_refused(tmp_path):
    file = save({"model": nn.Sequential(nn.Conv2d(3, 8, 3))}, tmp_path / "plain.pt")
    assert refusal(file) == f"'{file}' has no BatchNorm layers, so its channels cannot be ranked."


def test_a_diverged_model_is_refused(tmp_path, module):
    module.model[0].bn.weight.data[3] = float("nan")
    file = save({"model": module}, tmp_path / "nan.pt")
    assert refusal(file) == f"'{file}' holds NaN or infinity in 'model.0.bn.weight': its training diverged."


# --- good ones -------------------------------------------------------------------------------------------


def test_an_architecture_gets_the_same_random_weights_for_the_same_seed(tiny, tiny_file):
    before = torch.random.get_rng_state()
    assert fingerprint(load_detector(tiny_file).module) == fingerprint(tiny.module)
    assert fingerprint(load_detector(tiny_file, seed=1).module) != fingerprint(tiny.module)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_loaded_model_is_float32_in_eval_mode_with_the_hosts_attributes(tiny):
    assert {p.dtype for p in tiny.module.parameters()} == {torch.float32}
    assert not tiny.module.training
    assert (tiny.task, tiny.imgsz, tiny.meta, len(tiny.names)) == ("detect", 640, None, 80)
    assert {"yaml", "args", "names", "stride", "task"} <= vars(tiny.module).keys() | {"task"}


@pytest.mark.parametrize(
    ("imgsz", "expected"), [(320, 320), ([480, 640], (480, 640)), ([640, 640], 640), (None, 640), ("a", 640)]
)
def test_the_image_size_is_the_one_of_training(tmp_path, module, imgsz, expected):
    file = save({"model": module, "train_args": {"imgsz": imgsz}}, tmp_path / "x.pt")
    assert load_detector(file).imgsz == expected


def test_ema_weights_come_before_the_others(tmp_path, module):
    ema = copy.deepcopy(module)
    ema.model[0].bn.weight.data.fill_(0.5)
    loaded = load_detector(save({"model": module, "ema": ema}, tmp_path / "x.pt"))
    assert loaded.module.model[0].bn.weight.unique().tolist() == [0.5]


def test_saving_and_loading_keeps_weights_names_and_metadata(tmp_path, module):
    module.names = {0: "cat", 1: "dog"}
    meta = {"plan": {"model.0": [0, 2]}, "parent": fingerprint(module), "keep_macs": 0.5}
    file = save_detector(
        tmp_path / "new" / "pruned.pt",
        module,
        task="detect",
        train_args={"imgsz": 320, "data": Path("d.yaml")},
        meta=meta,
    )
    loaded = load_detector(file)
    assert fingerprint(loaded.module) == fingerprint(module.half().float())
    assert (loaded.names, loaded.imgsz) == ({0: "cat", 1: "dog"}, 320)
    assert loaded.train_args["data"] == "d.yaml"
    assert {key: loaded.meta[key] for key in meta} == meta
    assert loaded.meta["versions"].keys() == {"yolo_prune", "torch", "ultralytics"}
    assert read_metadata(file) == loaded.meta
    assert [path.name for path in file.parent.iterdir()] == ["pruned.pt"]


def test_saving_leaves_the_module_alone(tmp_path, module):
    module.train()
    before = fingerprint(module)
    save_detector(tmp_path / "x.pt", module, task="detect", train_args={}, meta={})
    assert fingerprint(module) == before
    assert module.training
    assert all(parameter.requires_grad for parameter in module.model[0].parameters())


def test_a_value_beyond_float16_is_stored_in_float32(tmp_path, module):
    module.model[0].bn.running_var[0] = 1e6
    file = save_detector(tmp_path / "x.pt", module, task="detect", train_args={}, meta={})
    assert load_detector(file).module.model[0].bn.running_var[0] == 1e6


def test_metadata_can_be_added_to_a_file_that_the_host_wrote(tmp_path, module):
    file = save({"model": module.half(), "epoch": 7}, tmp_path / "x.pt")
    assert read_metadata(file) is None
    write_metadata(file, {"plan": "p"})
    assert read_metadata(file)["plan"] == "p"
    assert torch.load(file, weights_only=False)["epoch"] == 7


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda module: setattr(module.model[0], "act", Custom()),
            f"cannot write '{{file}}': the model holds '{Custom.__module__}.Custom', "
            "which the host's restricted loader refuses. "
            "If the class is your own, pass trust=true.",
        ),
        (
            lambda module: module.model[0].register_forward_hook(lambda *_: None),
            "cannot write '{file}': the module 'model.0' carries a hook; remove it first.",
        ),
        (
            lambda module: module.model[0].register_forward_pre_hook(lambda *_: None),
            "cannot write '{file}': the module 'model.0' carries a hook; remove it first.",
        ),
    ],
)
def test_what_a_plain_host_could_not_load_is_not_written(tmp_path, module, spoil, message):
    spoil(module)
    file = tmp_path / "x.pt"
    with pytest.raises(CheckpointError) as caught:
        save_detector(file, module, task="detect", train_args={}, meta={})
    assert str(caught.value) == message.format(file=file)
    assert list(tmp_path.iterdir()) == []


def test_metadata_is_plain_values_only(tmp_path, module):
    with pytest.raises(CheckpointError, match="checkpoint metadata must be plain JSON values"):
        save_detector(tmp_path / "x.pt", module, task="detect", train_args={}, meta={"plan": object()})


FRESH = """
import importlib.abc, json, sys
class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == "yolo_prune":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocker())
import numpy, torch
from ultralytics import YOLO
from ultralytics.utils import SAFE_LOAD
assert SAFE_LOAD
model = YOLO(sys.argv[1])
results = model.predict(numpy.zeros((64, 64, 3), "uint8"), imgsz=64, verbose=False)
total = float(sum(tensor.double().sum() for tensor in YOLO(sys.argv[1]).model.state_dict().values()))
assert not any(name.partition(".")[0] == "yolo_prune" for name in sys.modules)
print(json.dumps([model.task, len(results), total]))
"""


def test_the_plain_host_loads_the_file_in_a_fresh_process_in_its_restricted_mode(tmp_path, module):
    from ultralytics import utils

    if not hasattr(utils, "SAFE_LOAD"):
        pytest.skip("this version of the host has no restricted mode")
    file = save_detector(tmp_path / "x.pt", module, task="detect", train_args={}, meta={"plan": [1]})
    done = subprocess.run(
        [sys.executable, "-I", "-c", FRESH, str(file)],
        env={**os.environ, "ULTRALYTICS_SAFE_LOAD": "true"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    task, images, total = json.loads(done.stdout.splitlines()[-1])
    expected = float(sum(t.double().sum() for t in load_detector(file).module.state_dict().values()))
    assert (task, images) == ("detect", 1)
    assert total == pytest.approx(expected, rel=1e-9)


def test_a_stock_architecture_is_known_by_name():
    loaded = load_detector("yolov8n.yaml")
    assert (loaded.task, len(loaded.names), loaded.imgsz) == ("detect", 80, 640)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "classes", "imgsz"),
    [
        ("bccd_yolov5nu.pt", 3, 320),
        ("bccd_yolo11n.pt", 3, 320),
        ("yolov5n_ultralytics_coco_backbone.pt", 80, 640),
    ],
)
def test_real_checkpoints_load_and_survive_a_round_trip(shared, tmp_path, name, classes, imgsz):
    loaded = load_detector(shared / "weights" / name)
    assert (loaded.task, len(loaded.names), loaded.imgsz, loaded.meta) == ("detect", classes, imgsz, None)
    again = save_detector(
        tmp_path / name, loaded.module, task="detect", train_args=loaded.train_args, meta={}
    )
    assert fingerprint(load_detector(again).module) == fingerprint(loaded.module)
    with torch.no_grad():
        image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        assert torch.equal(load_detector(again).module(image)[0], loaded.module(image)[0])
