"""Named networks and state dicts: what is loaded, what is refused, and that a file comes back with plain torch."""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("torchvision")
pytest.importorskip("timm")

from yolo_prune.adapters.checkpoint import load_detector
from yolo_prune.adapters.hosts import attach, find_host
from yolo_prune.adapters.torchvision import build as building
from yolo_prune.adapters.torchvision.build import build, classes_in
from yolo_prune.adapters.torchvision.described import describe_, described
from yolo_prune.adapters.torchvision.files import load, read_metadata, save, write_metadata
from yolo_prune.cost import count_parameters
from yolo_prune.errors import CheckpointError, ConfigError, MissingRuntimeError
from yolo_prune.recover.structure import prune_module

TINY = "timm:test_resnet"
X = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A state dict of a tiny classifier of 5 classes."""
    file = tmp_path_factory.mktemp("weights") / "tiny.pth"
    torch.save(build(TINY, 5, seed=3).state_dict(), file)
    return file


@pytest.mark.parametrize(
    "architecture",
    [
        *(TINY, "torchvision:squeezenet1_0", "torchvision:ssdlite320_mobilenet_v3_large"),
        *("torchvision:fasterrcnn_mobilenet_v3_large_320_fpn", "torchvision:retinanet_resnet50_fpn"),
    ],
)
def test_the_number_of_classes_is_read_off_the_state_dict(architecture):
    with torch.device("meta"):
        state = build(architecture, 7).state_dict()
    assert classes_in(state, architecture) == 7


def test_a_network_that_is_read_computes_what_the_library_s_does(weights):
    import timm

    plain = timm.create_model("test_resnet", num_classes=5).eval()
    plain.load_state_dict(torch.load(weights))
    loaded = load_detector(TINY, weights=weights)
    mean, std = (torch.tensor(plain.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    assert torch.equal(loaded.module(X), plain((X - mean) / std))
    assert not torch.allclose(loaded.module(X), plain(X)), "the control: normalisation matters"
    assert (loaded.task, len(loaded.names), loaded.channels) == ("classify", 5, 3)


@pytest.mark.parametrize("key", ["model", "state_dict", "model_state_dict"])
def test_a_checkpoint_of_the_library_s_own_script_is_read(weights, tmp_path, key):
    state = {f"module.{name}": tensor for name, tensor in torch.load(weights).items()}
    torch.save({key: state, "epoch": 3, "args": argparse.Namespace(lr=0.1)}, tmp_path / "checkpoint.pth")
    again = load(TINY, weights=tmp_path / "checkpoint.pth")
    assert torch.equal(again.module(X), load(TINY, weights=weights).module(X))


def test_frozen_statistics_mean_the_same_in_batchnorm_that_learns(weights, tmp_path):
    state = {name: tensor for name, tensor in torch.load(weights).items() if "num_batches" not in name}
    torch.save(state, tmp_path / "frozen.pth")
    assert torch.equal(
        load(TINY, weights=tmp_path / "frozen.pth").module(X), load(TINY, weights=weights).module(X)
    )


def refused(error, text, *args, **options):
    with pytest.raises(error) as caught:
        load(*args, **options)
    assert str(caught.value) == text


def test_an_unknown_name_is_answered_with_the_nearest():
    refused(
        ConfigError,
        "torchvision has no detector or classifier 'resnet5'. Did you mean 'torchvision:resnet50'?",
        "torchvision:resnet5",
    )


def test_weights_of_another_network_are_refused_by_name(weights):
    refused(
        CheckpointError,
        f"the weights in '{weights}' are not of torchvision:resnet18: they lack conv1.weight, layer1.1.conv1.weight, "
        "layer1.1.bn1.weight and 50 more; they have conv1.0.weight, conv1.1.weight, conv1.1.bias and 31 more; 69 of "
        "122 names are the same.",
        "torchvision:resnet18",
        weights=weights,
    )
    with pytest.raises(CheckpointError, match=r"the number of classes cannot be read off classifier"):
        load("torchvision:mobilenet_v3_small", weights=weights)


def test_weights_of_a_narrower_network_are_refused_by_shape(weights, tmp_path):
    module = load(TINY, weights=weights).module
    prune_module(module, X[:1], keep_macs=0.5)
    torch.save(module.state_dict(), tmp_path / "narrow.pth")
    with pytest.raises(CheckpointError, match=r"Weights of a pruned network need its plan: give the file"):
        load(TINY, weights=tmp_path / "narrow.pth")


def test_a_file_without_a_state_dict_is_refused(tmp_path):
    torch.save({"epoch": 3, "note": "nothing"}, tmp_path / "a.pth")
    refused(
        CheckpointError,
        f"'{tmp_path / 'a.pth'}' holds no state dict, bare or under one of state_dict, model_state_dict, model, "
        "model_ema, ema: it has dict under 'epoch', 'note'. Save model.state_dict().",
        TINY,
        weights=tmp_path / "a.pth",
    )


def test_a_pickled_module_is_not_run(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "a.pth")
    with pytest.raises(
        CheckpointError, match=r"more than tensors and plain values, .* save model.state_dict\(\) alone"
    ):
        load(TINY, weights=tmp_path / "a.pth")


def test_a_truncated_file_is_refused(weights, tmp_path):
    whole = weights.read_bytes()
    (tmp_path / "a.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"is truncated or damaged"):
        load(TINY, weights=tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"does not exist"):
        load(TINY, weights=tmp_path / "none.pth")


def test_weights_that_diverged_are_refused(weights, tmp_path):
    state = torch.load(weights)
    next(iter(state.values())).view(-1)[0] = float("nan")
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"holds NaN or infinity in '.*': its training diverged"):
        load(TINY, weights=tmp_path / "a.pth")


def test_a_library_that_is_not_there_is_named(monkeypatch):
    building._names.cache_clear()
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        MissingRuntimeError, match=r"'timm' is not installed: pip install \"yolo-prune\[timm\]\""
    ):
        load(TINY)
    building._names.cache_clear()


def saved(module, file, plan=None):
    return save(file, module, train_args={"imgsz": 64}, meta={"role": "pruned", "imgsz": 64}, plan=plan)


@pytest.fixture(scope="module")
def cut(weights, tmp_path_factory):
    """A file of a network that was cut twice: once before it was stored and loaded, once after."""
    tmp_path = tmp_path_factory.mktemp("cut")
    module = load(TINY, weights=weights).module
    plan = prune_module(module, X[:1], keep_macs=0.7)
    again = load(saved(module, tmp_path / "once.pt", plan)).module
    plan = prune_module(again, X[:1], keep_macs=0.7)
    return again, saved(again, tmp_path / "twice.pt", plan)


def test_a_file_of_a_cut_network_comes_back_as_it_was(cut):
    module, file = cut
    loaded = load_detector(file)
    assert torch.equal(loaded.module(X), module(X))
    assert count_parameters(loaded.module) == count_parameters(module)
    assert (loaded.imgsz, loaded.meta["role"]) == (64, "pruned")
    with pytest.raises(ConfigError, match=r"holds its own weights: leave weights= out"):
        load(file, weights=file)


def test_a_fresh_process_needs_torch_the_library_and_restore_alone(cut, tmp_path):
    module, file = cut
    torch.save(X, tmp_path / "x.pt")
    code = (
        "import sys, torch, timm, yolo_prune\n"
        f"stored = torch.load({str(file)!r}, weights_only=True)\n"
        "net = timm.create_model(stored['architecture'].partition(':')[2], num_classes=stored['outputs'])\n"
        "from yolo_prune.cut.record import PrunePlan\n"
        "yolo_prune.restore(net, PrunePlan.from_json(stored['plan'])).load_state_dict(stored['state_dict'])\n"
        "mean, std = (torch.tensor(net.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ('mean', 'std'))\n"
        f"x = (torch.load({str(tmp_path / 'x.pt')!r}) - mean) / std\n"
        "print(net.eval()(x).tolist(), 'ultralytics' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{module(X).tolist()} False"


def test_metadata_is_read_and_replaced(cut, tmp_path):
    file = Path(shutil.copy(cut[1], tmp_path))
    assert read_metadata(file)["role"] == "pruned"
    write_metadata(file, {"role": "retrained"})
    assert read_metadata(file)["role"] == "retrained"
    with pytest.raises(CheckpointError, match=r"metadata must be plain JSON"):
        save(file, load(file).module, train_args={}, meta={"a": object()})
    assert json.dumps(read_metadata(file))


def test_files_and_names_find_their_host(cut, weights):
    _, file = cut
    ours = find_host(TINY)
    assert ours is find_host(file) is find_host("torchvision:resnet18")
    assert find_host(weights) is not ours, "a bare state dict does not say what it is of"
    assert find_host("yolov8n.pt") is not ours


def test_attaching_to_a_module_of_the_library_is_answered_with_the_session(weights):
    import timm

    module = timm.create_model("test_resnet", num_classes=5)
    with pytest.raises(
        ConfigError, match=r"have no trainer to prune in: use yolo_prune.PruningSession in your own loop"
    ):
        attach(module, keep_macs=0.5)


def test_a_module_of_the_user_is_told_how_to_go_on():
    with pytest.raises(CheckpointError, match=r"the Linear was not built by name"):
        described(torch.nn.Linear(2, 2))
    module = torch.nn.Linear(2, 2)
    assert describe_(module, described(load(TINY).module)) is module
