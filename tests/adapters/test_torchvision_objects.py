"""Module objects of the libraries: which name builds them is found, or a sentence says why no file can hold them."""

import pytest
import torch
from torch import nn

pytest.importorskip("torchvision")
pytest.importorskip("timm")

import timm
import torchvision
from nets import randomise_
from torchvision.ops import FrozenBatchNorm2d

from yolo_prune.adapters.checkpoint import load_detector
from yolo_prune.adapters.hosts import file_of
from yolo_prune.adapters.torchvision.build import IMAGENET, build
from yolo_prune.adapters.torchvision.described import described
from yolo_prune.adapters.torchvision.objects import write_object
from yolo_prune.errors import CheckpointError
from yolo_prune.recover.structure import prune_module
from yolo_prune.runs.prune import prune

X = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def tiny(**options):
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=5, **options).eval()


def normalised(mean, std):
    return (X - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)


def test_the_file_of_an_object_computes_what_the_object_does(tmp_path):
    net = tiny(drop_rate=0.2)
    file = file_of(net, tmp_path / "given")
    loaded = load_detector(file)
    own = net.pretrained_cfg
    assert torch.equal(loaded.module(X), net(normalised(own["mean"], own["std"])))
    what = described(loaded.module)
    assert (what.architecture, what.outputs, what.imgsz) == ("timm:test_resnet.r160_in1k", 5, 160)
    assert file.parent == tmp_path / "given"


def test_the_same_weights_have_the_same_file_and_others_another(tmp_path):
    first, again = (write_object(tiny(), tmp_path) for _ in range(2))
    net = tiny()
    net.conv1[0].weight.data[0] += 1
    assert first == again != write_object(net, tmp_path)


def test_frozen_norms_with_an_epsilon_of_their_own_compute_the_same(tmp_path):
    torch.manual_seed(0)
    net = torchvision.models.resnet18(num_classes=4, norm_layer=FrozenBatchNorm2d).eval()
    for layer in net.modules():
        if isinstance(layer, FrozenBatchNorm2d):
            layer.eps = 0.5
            layer.running_var.uniform_(0.5, 2)
    wanted = net(normalised(*IMAGENET))
    loaded = load_detector(write_object(net, tmp_path))
    assert torch.allclose(loaded.module(X), wanted, atol=1e-4)
    assert net.bn1.eps == 0.5
    plain = build("torchvision:resnet18", 4)
    plain.load_state_dict(net.state_dict(), strict=False)
    assert not torch.allclose(plain(X), wanted, atol=1e-2), "the control: the epsilon is felt"


@pytest.mark.parametrize(
    "name",
    [
        "fasterrcnn_mobilenet_v3_large_fpn",
        "fasterrcnn_mobilenet_v3_large_320_fpn",
    ],
)
def test_detectors_of_one_shape_are_told_apart_by_what_their_layers_hold(name, tmp_path):
    net = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=3)
    loaded = load_detector(write_object(randomise_(net), tmp_path))
    assert described(loaded.module).architecture == f"torchvision:{name}"
    assert described(loaded.module).outputs == 3
    assert loaded.imgsz == (800 if name.endswith("large_fpn") else 320)
    assert all(torch.equal(t, net.state_dict()[n]) for n, t in loaded.module.state_dict().items())


def test_an_object_of_a_file_is_written_with_what_was_cut_of_it(tmp_path):
    loaded = load_detector(write_object(tiny(), tmp_path))
    again = load_detector(file_of(loaded.module, tmp_path))
    assert torch.equal(again.module(X), loaded.module(X))


def changed(net):
    net.fc = nn.Sequential(nn.Dropout(), net.fc)
    return net


def hooked(net):
    net.layer1.register_forward_hook(lambda module, inputs, output: 2 * output)
    return net


def cut(net):
    prune_module(net, X[:1], keep_macs=0.5)
    return net


def other_pixels(net):
    net.pretrained_cfg = {**net.pretrained_cfg, "mean": (0.1, 0.1, 0.1)}
    return net


def detector(**options):
    return torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=3, **options
    )


HELP = "For a module of your own use prune_module, and report_modules for its report."


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: changed(tiny()), f"builds by name is this ResNet. {HELP}"),
        (lambda: cut(tiny()), f"builds by name is this ResNet. {HELP}"),
        (lambda: hooked(tiny()), "'layer1' has a forward hook, which a file does not hold: take it off."),
        (lambda: other_pixels(tiny()), "this one's ((0.1, 0.1, 0.1), (0.5, 0.5, 0.5))"),
        (
            lambda: detector(box_nms_thresh=0.3),
            "fasterrcnn_mobilenet_v3_large_320_fpn is another: its 'roi_heads.nms_thresh' is 0.5, this one's 0.3. "
            + HELP,
        ),
        (
            lambda: nn.Linear(2, 2),
            "expected a checkpoint path, a YOLO object that came from one, or a network that torchvision or timm "
            f"builds by name, got Linear. {HELP}",
        ),
    ],
)
def test_what_no_file_can_hold_is_refused_before_anything_is_written(make, text, tmp_path):
    with pytest.raises(CheckpointError) as caught:
        prune(make(), data="data", keep_macs=0.5, project=str(tmp_path))
    assert text in str(caught.value)
    assert not list(tmp_path.iterdir())
