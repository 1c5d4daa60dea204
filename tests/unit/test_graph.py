"""What every operator does to channels: coupled, passed on, tied in number, or frozen with a reason."""

import numpy as np
import pytest
import torch
from nets import Net, channels, conv, free_width, group_of, reason_of
from torch import nn
from torch.nn import functional

from yolo_prune.cost.macs import count_macs_for_real, count_macs_per_operation
from yolo_prune.graph import ModuleRule, trace_groups

X = torch.zeros(1, 3, 8, 8)


def stem(makes=8, reads=3, size=1):
    return nn.Conv2d(reads, makes, size)


def head(reads=8):
    return nn.Conv2d(reads, 2, 1)


def test_the_output_and_the_input_of_the_model_stay():
    graph = trace_groups(nn.Sequential(stem(), head()), X)
    assert free_width(graph, "0") == 8
    assert reason_of(graph, "1") == "is an output in 'the model'"
    assert channels(graph, "0") == channels(graph, "1", 1)
    assert all(graph.frozen[c] for c in channels(graph, "0", 1))


def test_a_residual_add_couples_both_branches():
    net = Net(lambda m, x: m.c(m.a(x) + m.b(x)), a=stem(), b=stem(), c=head())
    graph = trace_groups(net, X)
    assert channels(graph, "a") == channels(graph, "b") == channels(graph, "c", 1)
    assert len(graph.ties) == len(graph.groups)


def test_a_concatenation_keeps_its_parts_independent():
    net = Net(lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 1)), a=stem(8), b=stem(4), c=head(12))
    graph = trace_groups(net, X)
    assert channels(graph, "c", 1) == channels(graph, "a") + channels(graph, "b")
    assert set(channels(graph, "a")).isdisjoint(channels(graph, "b"))


def test_a_chunk_ties_counts_and_not_indices():
    def run(m, x):
        left, right = m.a(x).chunk(2, 1)
        return m.c(left) + m.d(right)

    graph = trace_groups(Net(run, a=stem(16), c=head(8), d=head(8)), X)
    tied = [tie for tie in graph.ties if len(tie) == 2]
    assert len(tied) == 1
    assert sorted(len(graph.groups[i].channels) for i in tied[0]) == [8, 8]
    assert len(set(channels(graph, "a"))) == 16


def test_a_split_by_fixed_sizes_freezes_unless_a_rule_knows_better():
    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.c, self.a, self.d = 8, stem(16), head(8)

        def forward(self, x):
            left, right = self.a(x).split((self.c, self.c), 1)
            return self.d(left * right)

    assert free_width(trace_groups(Halves(), X), "a") == 0
    assert "is split by fixed sizes" in reason_of(trace_groups(Halves(), X), "a")
    graph = trace_groups(Halves(), X, rules={Halves: ModuleRule(lambda m: None)})
    assert free_width(graph, "a") == 16
    assert len(set(channels(graph, "a"))) == 8, "the product couples the halves index by index"


@pytest.mark.parametrize("multiplier", [1, 2])
def test_a_depthwise_convolution_passes_channels_on(multiplier):
    wide = 8 * multiplier
    net = nn.Sequential(stem(), nn.Conv2d(8, wide, 3, groups=8), nn.BatchNorm2d(wide), head(wide))
    graph = trace_groups(net, X)
    assert channels(graph, "3", 1) == np.repeat(channels(graph, "0"), multiplier).tolist()
    assert channels(graph, "2") == channels(graph, "1")


def test_a_grouped_convolution_keeps_equally_many_in_every_group():
    net = nn.Sequential(stem(8), nn.Conv2d(8, 12, 1, groups=2), head(12))
    graph = trace_groups(net, X)
    assert channels(graph, "0")[:4] == channels(graph, "0")[4:] == channels(graph, "1", 1)
    assert [len(tie) for tie in graph.ties].count(2) == 1
    assert group_of(graph, "0").unit == 2


def test_a_gate_of_one_channel_is_frozen_and_what_it_scales_is_not():
    net = Net(lambda m, x: m.c(m.a(x) * m.g(x).sigmoid()), a=stem(), g=nn.Conv2d(3, 1, 1), c=head())
    graph = trace_groups(net, X)
    assert free_width(graph, "a") == 8
    assert reason_of(graph, "g") == "is one channel that scales many in 'the model'"


def test_squeeze_and_excitation_couples_the_gate_with_what_it_scales():
    def run(m, x):
        x = m.a(x)
        return m.c(x * m.up(m.down(functional.adaptive_avg_pool2d(x, 1)).relu()).sigmoid())

    graph = trace_groups(Net(run, a=stem(), down=stem(4, 8), up=stem(8, 4), c=head()), X)
    assert channels(graph, "a") == channels(graph, "up")
    assert free_width(graph, "down") == 4


def test_a_mean_over_channels_freezes_them():
    def run(m, x):
        x = m.a(x)
        return m.c(x * m.s(x.mean(1, keepdim=True)).sigmoid())

    graph = trace_groups(Net(run, a=stem(), s=nn.Conv2d(1, 1, 1), c=head()), X)
    assert reason_of(graph, "a") == "is summed over by 'mean' in 'the model'"


def test_a_convolution_that_runs_twice_couples_its_inputs():
    net = Net(lambda m, x: m.h(m.s(m.a(x))) + m.h(m.s(m.b(x))), a=stem(), b=stem(), s=stem(8, 8), h=head())
    graph = trace_groups(net, X)
    assert channels(graph, "a") == channels(graph, "b")
    assert free_width(graph, "s") == 8


def test_flatten_and_linear_read_every_position_of_a_channel():
    net = nn.Sequential(stem(4), nn.Flatten(), nn.Linear(4 * 64, 6), nn.ReLU(), nn.Linear(6, 2))
    graph = trace_groups(net, X)
    assert channels(graph, "2", 1) == np.repeat(channels(graph, "0"), 64).tolist()
    assert free_width(graph, "2") == 6


def test_an_operator_without_a_rule_freezes_and_is_named():
    net = Net(lambda m, x: m.c(torch.renorm(m.a(x), 2, 1, 1.0)), a=stem(), c=head())
    graph = trace_groups(net, X)
    assert graph.unknown == {"renorm": 1}
    assert reason_of(graph, "a") == "reaches operator 'renorm', which has no rule, in 'the model'"
    assert all(graph.frozen[c] for c in channels(graph, "c", 1))


def test_a_rule_of_the_users_own_is_asked_first():
    from yolo_prune.graph.rules.elementwise import pointwise

    net = Net(lambda m, x: m.c(torch.renorm(m.a(x), 2, 1, 1.0)), a=stem(), c=head())
    assert free_width(trace_groups(net, X), "a") == 0
    assert free_width(trace_groups(net, X, operators={"renorm": pointwise}), "a") == 8


@pytest.mark.parametrize("width", [8, 1])
def test_a_constant_freezes_only_what_it_is_as_wide_as(width):
    constant = torch.ones(1, width, 1, 1)
    net = Net(lambda m, x: m.c(m.a(x) + constant), a=stem(), c=head())
    assert free_width(trace_groups(net, X), "a") == (0 if width == 8 else 8)


def test_a_parameter_of_the_channels_width_follows_them():
    net = Net(lambda m, x: m.c(m.a(x) * m.gamma), a=stem(), c=head())
    net.gamma = nn.Parameter(torch.ones(8, 1, 1))
    graph = trace_groups(net, X)
    axis = next(axis for axis in graph.axes if axis.name == "gamma")
    assert (axis.dim, graph.axis_channels(axis).tolist()) == (0, channels(graph, "a"))


def test_work_in_place_couples_like_work_out_of_place():
    def run(m, x):
        y = m.a(x)
        y += m.b(x)
        y.relu_().clamp_(max=3)
        return m.c(y)

    graph = trace_groups(Net(run, a=stem(), b=stem(), c=head()), X)
    assert channels(graph, "a") == channels(graph, "b") == channels(graph, "c", 1)
    assert free_width(graph, "a") == 8


def test_writing_into_a_part_of_another_tensor_freezes():
    def run(m, x):
        y = torch.zeros(1, 8, 8, 8)
        y[:, :4] = m.a(x)
        return m.c(y)

    graph = trace_groups(Net(run, a=stem(4), c=head()), X)
    assert reason_of(graph, "a") == "is written into a part of another tensor in 'the model'"


def test_padding_of_positions_is_free_and_padding_of_channels_is_not():
    spatial = Net(lambda m, x: m.c(functional.pad(m.a(x), (1, 1, 1, 1))), a=stem(), c=head())
    assert free_width(trace_groups(spatial, X), "a") == 8
    widened = Net(lambda m, x: m.c(functional.pad(m.a(x), (0, 0, 0, 0, 0, 4))), a=stem(), c=head(12))
    assert reason_of(trace_groups(widened, X), "a") == "is padded along its channels in 'the model'"


def test_a_product_of_activations_couples_what_it_sums_over():
    def run(m, x):
        q, k, v = (layer(x).flatten(2) for layer in (m.q, m.k, m.v))
        return m.c((v @ (q.transpose(1, 2) @ k).softmax(-1)).view(1, -1, 8, 8))

    graph = trace_groups(Net(run, q=stem(4), k=stem(4), v=stem(8), c=head()), X)
    assert channels(graph, "q") == channels(graph, "k")
    assert graph.contracted[channels(graph, "q")].all()
    assert free_width(graph, "v") == 8
    assert not graph.contracted[channels(graph, "v")].any()


def test_space_to_depth_by_slices_passes_every_channel_on_four_times():
    def run(m, x):
        y = m.a(x)
        return m.c(torch.cat([y[..., ::2, ::2], y[..., 1::2, ::2], y[..., ::2, 1::2], y[..., 1::2, 1::2]], 1))

    graph = trace_groups(Net(run, a=stem(4), c=head(16)), X)
    assert channels(graph, "c", 1) == channels(graph, "a") * 4
    assert free_width(graph, "a") == 4


def test_pixel_shuffle_takes_the_four_channels_of_a_pixel_together():
    graph = trace_groups(nn.Sequential(stem(16), nn.PixelShuffle(2), head(4)), X)
    assert channels(graph, "0") == np.repeat(channels(graph, "2", 1), 4).tolist()


def test_group_norm_takes_the_channels_of_a_group_together():
    graph = trace_groups(nn.Sequential(stem(16), nn.GroupNorm(4, 16), head(16)), X)
    assert channels(graph, "0") == np.repeat(np.unique(channels(graph, "0")), 4).tolist()
    assert group_of(graph, "0").unit == 4


def test_layer_norm_freezes_and_says_why():
    def run(m, x):
        return m.c(m.n(m.a(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2))

    graph = trace_groups(Net(run, a=stem(), n=nn.LayerNorm(8), c=head()), X)
    assert reason_of(graph, "a") == "takes part in a mean over all channels (LayerNorm) in 'n'"


def test_a_transposed_convolution_makes_its_second_dimension():
    net = nn.Sequential(stem(), nn.ConvTranspose2d(8, 6, 2, stride=2), nn.BatchNorm2d(6), head(6))
    graph = trace_groups(net, X)
    assert channels(graph, "1", 0) == channels(graph, "0")
    assert channels(graph, "1", 1) == channels(graph, "3", 1) == channels(graph, "2")


def test_a_reshape_that_splits_channels_freezes_them():
    def run(m, x):
        y = m.a(x)
        return m.c(y.view(1, 2, 4, 8, 8).transpose(1, 2).reshape(1, 8, 8, 8))

    graph = trace_groups(Net(run, a=stem(), c=head()), X)
    assert reason_of(graph, "a") == "has its channels split by a reshape in 'the model'"


def test_a_selection_by_index_freezes():
    net = Net(lambda m, x: m.c(m.a(x)[:, :4]), a=stem(), c=head(4))
    assert "is sliced by index ('slice')" in reason_of(trace_groups(net, X), "a")


def test_a_frozen_batch_norm_in_buffers_is_followed():
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("weight", torch.ones(8))
            self.register_buffer("bias", torch.zeros(8))

        def forward(self, x):
            return x * self.weight[None, :, None, None] + self.bias.reshape(1, -1, 1, 1)

    graph = trace_groups(nn.Sequential(stem(), Frozen(), head()), X)
    names = {axis.name: graph.axis_channels(axis).tolist() for axis in graph.axes}
    assert names["1.weight"] == names["1.bias"] == channels(graph, "0")


def test_a_layer_that_a_function_holds_is_frozen():
    shared = stem()
    net = Net(lambda m, x: m.c(m.a(x) + shared(x)), a=stem(), s=shared, c=head())
    graph = trace_groups(net, X)
    assert "is held by a function, which a copy of the model cannot change," in reason_of(graph, "s")


def test_the_module_is_left_as_it_was():
    net = nn.Sequential(conv(8, 3), head()).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    trace_groups(net, X)
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


ATTENTION = nn.MultiheadAttention(16, 2, batch_first=True)
COUNTED = {
    "convolutions": (nn.Sequential(conv(8, 3), conv(8, 8, groups=8), conv(8, 8, groups=2), head()), X),
    "transposed": (nn.Sequential(stem(), nn.ConvTranspose2d(8, 6, 3, 2, 1, 1), head(6)), X),
    "dilated": (nn.Sequential(nn.Conv2d(3, 8, 3, 2, 2, 2), nn.Upsample(scale_factor=2), head()), X),
    "linear": (nn.Sequential(nn.Linear(6, 4), nn.GELU(), nn.Linear(4, 3)), torch.zeros(1, 7, 6)),
    "attention": (Net(lambda m, x: m.a(x, x, x)[0], a=ATTENTION), torch.zeros(1, 5, 16)),
    "fused attention": (
        Net(lambda m, x: m.a(x, x, x, need_weights=False)[0], a=ATTENTION),
        torch.zeros(1, 5, 16),
    ),
}


@pytest.mark.parametrize("name", COUNTED)
def test_costs_from_shapes_are_those_of_a_real_run_and_of_the_trace(name):
    net, x = COUNTED[name]
    real = count_macs_for_real(net.eval(), x)
    assert sum(count_macs_per_operation(net, x)) == sum(real)
    assert [use.macs for use in trace_groups(net, x).uses] == real
