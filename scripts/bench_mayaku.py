"""Train a detector in mayaku's trainer, as it is or with the pruning hook, and print its COCO AP.

    python scripts/bench_mayaku.py DATA OUT --keep-macs 0.5

DATA holds ``images/SPLIT`` and ``annotations/instances_SPLIT.json``. mayaku ships nothing smaller than ResNet-50, so the
backbone is torchvision's ResNet with one block a stage, from random weights; FPN, region proposals, heads, optimizer,
schedule, averaged weights, checkpoints and evaluation are mayaku's.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mayaku.config.schemas import (
    AnchorGeneratorConfig,
    ROIBoxHeadConfig,
    ROIHeadsConfig,
    RPNConfig,
    SolverConfig,
)
from mayaku.data import DatasetMapper
from mayaku.data.datasets.coco import load_coco_dataset
from mayaku.data.samplers import TrainingSampler
from mayaku.data.transforms.augmentation import RandomFlip, ResizeShortestEdge
from mayaku.engine.callbacks import LRScheduler, MetricsPrinter, PeriodicCheckpointer
from mayaku.engine.ema import EMAHook, ModelEMA, clamp_ema_for_run_length
from mayaku.engine.evaluator import COCOEvaluator, inference_on_dataset
from mayaku.engine.optim import build_lr_scheduler, build_optimizer
from mayaku.engine.trainer import SimpleTrainer
from mayaku.models.backbones import Backbone
from mayaku.models.detectors.faster_rcnn import FasterRCNN
from mayaku.models.necks import FPN
from mayaku.models.proposals.rpn import build_rpn
from mayaku.models.roi_heads.standard import build_standard_roi_heads
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from yolo_prune.adapters.detectron import PruningHook
from yolo_prune.cost import count_parameters

STAGES = {"res2": 64, "res3": 128, "res4": 256, "res5": 512}
LEVELS = ("p2", "p3", "p4", "p5")


class SmallResNet(Backbone):
    """ResNet with one block a stage, as mayaku wants a backbone."""

    def __init__(self) -> None:
        super().__init__()
        net = ResNet(BasicBlock, [1, 1, 1, 1])
        self.stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
        self.res2, self.res3, self.res4, self.res5 = net.layer1, net.layer2, net.layer3, net.layer4
        self._out_features, self._out_feature_channels = tuple(STAGES), STAGES
        self._out_feature_strides = dict(zip(STAGES, (4, 8, 16, 32), strict=True))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the maps of the stages."""
        found, x = {}, self.stem(x)
        for name in STAGES:
            found[name] = x = getattr(self, name)(x)
        return found


def build(classes: int) -> FasterRCNN:
    fpn = FPN(SmallResNet(), tuple(STAGES), 64)
    shapes = fpn.output_shape()
    rpn = build_rpn(
        RPNConfig(
            in_features=LEVELS, post_nms_topk_train=300, post_nms_topk_test=200, batch_size_per_image=128
        ),
        AnchorGeneratorConfig(sizes=((16,), (32,), (64,), (128,))),
        shapes,
    )
    heads = build_standard_roi_heads(
        ROIHeadsConfig(in_features=LEVELS, num_classes=classes, batch_size_per_image=96),
        ROIBoxHeadConfig(fc_dim=256),
        shapes,
        test_detections_per_image=100,
    )
    return FasterRCNN(fpn, rpn, heads, pixel_mean=(123.7, 116.3, 103.5), pixel_std=(58.4, 57.1, 57.4))


def records(data: Path, split: str, side: int, *, train: bool) -> tuple[Any, ...]:
    """Return mayaku's mapped data set and its class names."""
    truth, images = data / "annotations" / f"instances_{split}.json", data / "images" / split
    meta, found = load_coco_dataset(name=split, json_path=truth, image_root=images)
    resize = ResizeShortestEdge((side,), max_size=4 * side)
    mapper = DatasetMapper([resize, RandomFlip()] if train else [resize], is_train=train)
    mapper.reseed(np.random.default_rng(0))
    return found, mapper, meta.thing_classes, truth


def batches(found: Any, mapper: Any, size: int) -> Iterator[list[dict[str, Any]]]:
    """Yield training batches without end, in the order of mayaku's sampler."""
    order = iter(TrainingSampler(len(found), seed=0))
    while True:
        yield [mapper(found[next(order)]) for _ in range(size)]


def average_precision(model: nn.Module, data: Path, split: str, side: int, names: Any) -> dict[str, float]:
    found, mapper, _, truth = records(data, split, side, train=False)
    shown = ([mapper(record)] for record in found)
    return inference_on_dataset(model, shown, COCOEvaluator(truth, class_names=names), progress_period=0)[
        "bbox"
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--keep-macs", type=float, help="prune to this share; not at all when not given")
    parser.add_argument("--iterations", type=int, default=600)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--side", type=int, default=192, help="short side of the images in pixels")
    parser.add_argument("--rate", type=float, default=0.02)
    parser.add_argument("--calibration-images", type=int, default=48)
    parser.add_argument("--steps", type=int, default=6, help="steps of the cut")
    options = parser.parse_args()
    torch.manual_seed(0)
    found, mapper, names, _ = records(options.data, "train", options.side, train=True)
    model = build(len(names))
    solver = SolverConfig(base_lr=options.rate)
    optimizer = build_optimizer(model, solver)
    steps = options.iterations
    schedule = build_lr_scheduler(optimizer, solver, max_iter=steps, warmup_iters=steps // 20)
    decay, tau = clamp_ema_for_run_length(solver.ema_decay, solver.ema_tau, steps)
    ema = ModelEMA(model, decay=decay, tau=tau)
    trainer = SimpleTrainer(model, batches(found, mapper, options.batch), optimizer, grad_clip_norm=10.0)
    around = [
        *(LRScheduler(schedule), MetricsPrinter(optimizer=optimizer, period=50), EMAHook(ema, model)),
        PeriodicCheckpointer(ema.shadow, options.out, steps, metadata={"class_names": list(names)}),
    ]
    hook = None
    if options.keep_macs:
        asked = {"calibration_images": options.calibration_images, "steps": options.steps}
        hook = PruningHook(keep_macs=options.keep_macs, **asked)
        around.append(hook)
    trainer.register_hooks(around)
    before, began = count_parameters(model), time.time()
    trainer.train(0, steps)
    result = {
        "minutes": (time.time() - began) / 60,
        "params_before": before,
        "params": count_parameters(model),
    }
    if hook:
        plan = hook.plan
        result |= {"gmacs": plan.gmacs, "kept_macs": plan.kept_macs, "criterion": plan.settings["criterion"]}
        result |= {"cut_after": hook.cut_after, "difference": plan.equivalence["max_difference"]}
    result |= {
        f"{split}_{name}": value
        for split in ("val", "test")
        for name, value in average_precision(ema.shadow, options.data, split, options.side, names).items()
    }
    (options.out / "result.json").write_text(json.dumps(result, indent=1))
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
