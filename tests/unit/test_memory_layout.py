"""The order in memory of weights, of what an optimizer remembers and of outputs: a cut changes none of it."""

import copy

import pytest
import torch
from nets import IMAGE, KINDS, Net, net_of, randomise_
from torch import nn

from yolo_prune.criteria.calibration import Calibration
from yolo_prune.cut.budget import Budget
from yolo_prune.cut.optimizer import follow_cut
from yolo_prune.cut.proven import Anatomy, Traced
from yolo_prune.cut.widths import Widths
from yolo_prune.recover import Recipe, cut_in_steps
from yolo_prune.recover.fold import recalibrate_bn_
from yolo_prune.recover.structure import prune_module

LAST = torch.channels_last
every_kind = pytest.mark.parametrize("kind", KINDS)


def prune(module, example=IMAGE, **options):
    return prune_module(module, example, keep_macs=0.5, round_to=4, min_width=4, **options)


def strides_of(shape, layout):
    """Strides as ``to(memory_format=...)`` sets them; also where two layouts are one in memory."""
    return torch.empty(shape, memory_format=layout).stride()


def is_laid_out(tensor, layout):
    return tensor.stride() == strides_of(
        tensor.shape, layout if tensor.dim() == 4 else torch.contiguous_format
    )


@every_kind
def test_a_cut_of_channels_last_is_that_of_contiguous_weights(kind):
    twin, module = net_of(kind), net_of(kind).to(memory_format=LAST)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3, amsgrad=True)
    module(torch.rand(2, 3, 16, 16).to(memory_format=LAST)).square().mean().backward()
    optimizer.step()
    twin.load_state_dict(module.state_dict())
    plan = prune(module, IMAGE.to(memory_format=LAST), optimizer=optimizer)
    assert plan.keep == prune(twin).keep
    assert plan.equivalence["exact"]
    for weight, other in zip(module.parameters(), twin.parameters(), strict=True):
        assert torch.equal(weight, other)
        assert is_laid_out(weight, LAST), tuple(weight.shape)
        for value in optimizer.state[weight].values():
            assert value.dim() == 0 or value.stride() == weight.stride()
    x = torch.rand(2, 3, 16, 16)
    found, expected = module(x.to(memory_format=LAST)), twin(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    if found.dim() == 4:
        assert is_laid_out(found, LAST), "the fast kernels are taken on, layer by layer"
        assert not is_laid_out(expected, LAST), "the control"


@every_kind
def test_of_mixed_layouts_each_layer_keeps_its_own(kind):
    module = net_of(kind)
    wide = [layer for layer in module.modules() if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))]
    for layer in wide[::2]:
        layer.to(memory_format=LAST)
    layouts = {
        id(layer): LAST if index % 2 == 0 else torch.contiguous_format for index, layer in enumerate(wide)
    }
    twin = copy.deepcopy(module).to(memory_format=torch.contiguous_format)
    shapes = [layer.weight.shape for layer in wide]
    assert prune(module).keep == prune(twin).keep
    assert [layer.weight.shape for layer in wide] != shapes
    for layer in wide:
        assert is_laid_out(layer.weight, layouts[id(layer)]), tuple(layer.weight.shape)
    x = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(module(x), twin(x), rtol=1e-4, atol=1e-5)


def test_what_an_optimizer_laid_out_otherwise_than_the_weight_stays_so():
    module = net_of("residual").to(memory_format=LAST)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    for parameter in module.parameters():
        optimizer.state[parameter] = {"momentum_buffer": torch.zeros(parameter.shape)}
    prune(module)
    follow_cut(optimizer, module)
    for weight in module.parameters():
        assert is_laid_out(weight, LAST)
        assert is_laid_out(optimizer.state[weight]["momentum_buffer"], torch.contiguous_format)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_channels_last_of_16_bits_stays_so(dtype):
    module = net_of("depthwise").to(dtype=dtype, memory_format=LAST)
    prune(module, IMAGE.to(dtype=dtype, memory_format=LAST))
    assert all(is_laid_out(weight, LAST) and weight.dtype == dtype for weight in module.parameters())


def test_volumes_keep_channels_last_too():
    last = torch.channels_last_3d
    layers = {
        "a": nn.Conv3d(3, 32, 3, padding=1),
        "n": nn.BatchNorm3d(32),
        "b": nn.Conv3d(32, 32, 1),
        "c": nn.Conv3d(32, 4, 3),
    }
    torch.manual_seed(0)
    x = torch.zeros(1, 3, 6, 6, 6)
    module = randomise_(Net(lambda m, x: m.c(m.b(m.n(m.a(x)).relu()).relu()), **layers), x=x).eval()
    twin = copy.deepcopy(module)
    module.to(memory_format=last)
    assert prune(module, x).keep == prune(twin, x).keep
    for weight, other in zip(module.parameters(), twin.parameters(), strict=True):
        assert torch.equal(weight, other)
        if weight.dim() == 5:
            assert weight.stride() == strides_of(weight.shape, last)
            assert other.stride() == strides_of(other.shape, torch.contiguous_format)


def test_folding_and_new_statistics_leave_channels_last_as_it_is():
    module = net_of("residual").to(memory_format=LAST)
    batches = [torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)).to(memory_format=LAST)]
    recipe = Recipe(steps=1, widths=Widths(4, 4))
    cut = cut_in_steps(
        Traced.of(module, Anatomy(IMAGE)), Budget("keep_macs", 0.5), recipe, Calibration(batches)
    )
    recalibrate_bn_(cut.module, Calibration(batches))
    assert cut.module.a[0].out_channels < 32
    assert all(is_laid_out(weight, LAST) for weight in cut.module.parameters())


def test_a_weight_that_is_no_dense_tensor_is_dense_after_the_cut():
    module, twin = net_of("transposed"), net_of("transposed")
    whole = module.up.weight.data
    module.up.weight.data = whole.transpose(2, 3).contiguous().transpose(2, 3)
    assert module.up.weight.stride() != whole.stride()
    assert prune(module).keep == prune(twin).keep
    assert torch.equal(module.up.weight, twin.up.weight)
    assert module.up.weight.is_contiguous()
