"""mayaku's own trainer, FPN, RPN and RoI heads around a small backbone, and images with squares to find."""

import json

import pytest
import torch

pytest.importorskip("mayaku")

from mayaku.config.schemas import AnchorGeneratorConfig, ROIBoxHeadConfig, ROIHeadsConfig, RPNConfig
from mayaku.engine.callbacks import LRScheduler
from mayaku.engine.trainer import SimpleTrainer
from mayaku.models.backbones import Backbone
from mayaku.models.backbones._frozen_bn import convert_frozen_batchnorm
from mayaku.models.detectors.faster_rcnn import FasterRCNN
from mayaku.models.necks import FPN
from mayaku.models.proposals.rpn import build_rpn
from mayaku.models.roi_heads.standard import build_standard_roi_heads
from mayaku.structures.boxes import Boxes
from mayaku.structures.instances import Instances
from nets import conv

SIDE, WIDTH = 64, 32
LEVELS = ("p2", "p3")


class Stages(Backbone):
    """Two stages with the names that the FPN asks for."""

    def __init__(self):
        super().__init__()
        self.stem, self.res2, self.res3 = (
            conv(WIDTH, 3, stride=2),
            conv(WIDTH, WIDTH, stride=2),
            conv(WIDTH, WIDTH, stride=2),
        )
        self._out_features = ("res2", "res3")
        self._out_feature_channels = dict.fromkeys(self._out_features, WIDTH)
        self._out_feature_strides = {"res2": 4, "res3": 8}

    def forward(self, x):
        fine = self.res2(self.stem(x))
        return {"res2": fine, "res3": self.res3(fine)}


def build(seed=0, frozen=False):
    """A Faster R-CNN of one class."""
    torch.manual_seed(seed)
    backbone = Stages()
    if frozen:
        convert_frozen_batchnorm(backbone)
    fpn = FPN(backbone, ("res2", "res3"), WIDTH)
    shapes = fpn.output_shape()
    few = {"pre_nms_topk_train": 60, "pre_nms_topk_test": 30, "post_nms_topk_train": 24}
    rpn = build_rpn(
        RPNConfig(in_features=LEVELS, post_nms_topk_test=12, batch_size_per_image=64, **few),
        AnchorGeneratorConfig(sizes=((16,), (32,))),
        shapes,
    )
    heads = build_standard_roi_heads(
        ROIHeadsConfig(in_features=LEVELS, num_classes=1, batch_size_per_image=24),
        ROIBoxHeadConfig(pooler_resolution=4, num_conv=1, conv_dim=WIDTH, num_fc=1, fc_dim=64),
        shapes,
        test_detections_per_image=6,
    )
    return FasterRCNN(fpn, rpn, heads, pixel_mean=(60.0,) * 3, pixel_std=(60.0,) * 3)


def square(index):
    """Image with one light square on a dark ground, and where it is."""
    generator = torch.Generator().manual_seed(index)
    image = torch.rand(3, SIDE, SIDE, generator=generator) * 40
    side = 16 + 4 * (index % 4)
    x, y = (int(torch.randint(0, SIDE - side, (1,), generator=generator)) for _ in range(2))
    image[:, y : y + side, x : x + side] += 180
    return image, (x, y, x + side, y + side)


def record(index):
    image, box = square(index)
    found = Instances((SIDE, SIDE))
    found.gt_boxes, found.gt_classes = Boxes(torch.tensor([box]).float()), torch.zeros(1, dtype=torch.int64)
    return {"image": image, "instances": found, "image_id": index, "height": SIDE, "width": SIDE}


def loader(batches=4, images=2):
    """Training batches as mayaku's own loader yields them."""
    return [[record(first * images + at) for at in range(images)] for first in range(batches)]


def write_truth(path, images=8):
    """Write the COCO annotations of the images, and return the path."""
    boxes = [square(index)[1] for index in range(images)]
    annotations = [
        {
            **{"id": index + 1, "image_id": index, "category_id": 1, "iscrowd": 0},
            "bbox": [x, y, x2 - x, y2 - y],
            "area": (x2 - x) * (y2 - y),
        }
        for index, (x, y, x2, y2) in enumerate(boxes)
    ]
    shown = [{"id": index, "height": SIDE, "width": SIDE, "file_name": ""} for index in range(images)]
    truth = {"images": shown, "annotations": annotations, "categories": [{"id": 1, "name": "square"}]}
    path.write_text(json.dumps(truth))
    return path


def trainer_of(model, hooks=(), batches=None, steps=1000, rate=0.02):
    """A trainer with a falling rate; the schedule stands before and after the given hooks, as people have it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    trainer = SimpleTrainer(model, batches or loader(), optimizer, grad_clip_norm=5.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    trainer.register_hooks([LRScheduler(schedule), *hooks])
    return trainer
