"""What a report says of a run beside accuracy and speed."""

from types import SimpleNamespace

from torch import nn

from yolo_prune.measure.changes import layer_widths


def test_layers_of_a_block_that_was_dropped_keep_no_channels():
    parent = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Sequential(nn.Conv2d(8, 8, 1)))
    pruned = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Identity())
    found = layer_widths(parent, pruned, SimpleNamespace(groups=()))
    assert [(layer.name, layer.parent, layer.kept) for layer in found] == [("0", 8, 4), ("1.0", 8, 0)]
