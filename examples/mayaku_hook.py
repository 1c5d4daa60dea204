"""A detector in mayaku's trainer, pruned by one more hook, and what comes back of it.

Run it with ``python examples/mayaku_hook.py``. detectron2's ``DefaultTrainer`` takes the same hook.
"""

import argparse
from pathlib import Path

import torch
from mayaku.config.schemas import AnchorGeneratorConfig, ROIBoxHeadConfig, ROIHeadsConfig, RPNConfig
from mayaku.engine.callbacks import LRScheduler, PeriodicCheckpointer
from mayaku.engine.trainer import SimpleTrainer
from mayaku.models.backbones import Backbone
from mayaku.models.detectors.faster_rcnn import FasterRCNN
from mayaku.models.necks import FPN
from mayaku.models.proposals.rpn import build_rpn
from mayaku.models.roi_heads.standard import build_standard_roi_heads
from mayaku.structures.boxes import Boxes
from mayaku.structures.instances import Instances
from torch import Tensor, nn

from yolo_prune import restore
from yolo_prune.adapters.detectron import PruningHook

SIDE, WIDTH, LEVELS = 96, 48, ("p2", "p3")


def conv(inside: int, outside: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inside, outside, 3, 2, 1, bias=False), nn.BatchNorm2d(outside), nn.ReLU())


class Stages(Backbone):
    """Two stages with the names that mayaku's pyramid asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.res2, self.res3 = conv(3, WIDTH), conv(WIDTH, WIDTH), conv(WIDTH, WIDTH)
        self._out_features = ("res2", "res3")
        self._out_feature_channels = dict.fromkeys(self._out_features, WIDTH)
        self._out_feature_strides = {"res2": 4, "res3": 8}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = self.res2(self.stem(x))
        return {"res2": fine, "res3": self.res3(fine)}


def build() -> FasterRCNN:
    """Build a small Faster R-CNN; with a config of mayaku's it is ``build_detector(cfg)``."""
    fpn = FPN(Stages(), ("res2", "res3"), WIDTH)
    few = {"post_nms_topk_train": 64, "post_nms_topk_test": 32, "batch_size_per_image": 64}
    anchors = AnchorGeneratorConfig(sizes=((24,), (48,)))
    rpn = build_rpn(RPNConfig(in_features=LEVELS, **few), anchors, fpn.output_shape())
    heads = build_standard_roi_heads(
        ROIHeadsConfig(in_features=LEVELS, num_classes=1, batch_size_per_image=32),
        *(ROIBoxHeadConfig(fc_dim=128), fpn.output_shape()),
    )
    return FasterRCNN(fpn, rpn, heads, pixel_mean=(60.0,) * 3, pixel_std=(60.0,) * 3)


def record(index: int) -> dict[str, object]:
    """Draw a light square on a dark ground, as mayaku's loader would yield it."""
    generator = torch.Generator().manual_seed(index)
    image, edge = 40 * torch.rand(3, SIDE, SIDE, generator=generator), 24 + 4 * (index % 6)
    x, y = torch.randint(0, SIDE - edge, (2,), generator=generator).tolist()
    image[:, y : y + edge, x : x + edge] += 180
    found = Instances((SIDE, SIDE))
    found.gt_boxes, found.gt_classes = (
        Boxes(torch.tensor([[x, y, x + edge, y + edge]]).float()),
        torch.zeros(1).long(),
    )
    return {"image": image, "instances": found, "height": SIDE, "width": SIDE}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--steps", type=int, default=4, help="the cut is made in so many")
    parser.add_argument("--out", type=Path, default=Path("runs/mayaku_hook"))
    options = parser.parse_args()
    torch.manual_seed(0)
    model, batches = build(), [[record(at), record(at + 1)] for at in range(0, 32, 2)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.iterations)
    trainer = SimpleTrainer(model, batches, optimizer, grad_clip_norm=5.0)
    hook = PruningHook(keep_macs=0.5, steps=options.steps, calibration_images=16)
    saving = PeriodicCheckpointer(model, options.out, options.iterations)
    trainer.register_hooks([LRScheduler(schedule), saving, hook])
    trainer.train(0, options.iterations)
    print(f"cut after {hook.cut_after} iterations: {hook.plan.kept_macs:.2f} of the MACs stay")

    again = restore(build(), options.out / "plan.json").eval()
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        ours, theirs = (net([record(99)])[0]["instances"].scores for net in (model.eval(), again))
    print(f"came back: {torch.equal(ours, theirs)}, {len(ours)} boxes in an image it has not seen")


if __name__ == "__main__":
    main()
