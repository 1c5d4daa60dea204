"""The hook in detectron2's own trainers; skipped where detectron2 is not installed (it is on no package index)."""

import json
import logging
import os
import warnings

import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # 2026-11: it still compiles with torch.jit.script when it is imported
    pytest.importorskip("detectron2")
    from detectron2.config import get_cfg
    from detectron2.engine import DefaultTrainer, SimpleTrainer
    from detectron2.modeling import build_model
    from detectron2.structures import Boxes, Instances
    from detectron2.utils.events import JSONWriter

import yolo_prune
from yolo_prune.adapters.detectron import PruningHook
from yolo_prune.cost import count_parameters

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"
)
SIDE = 64
OPTIONS = {
    **{"keep_macs": 0.6, "criterion": "bn_scale", "fold": False, "round_to": 4, "min_width": 4},
    **{"parts": 6, "sparsify": 0.05, "prune_at": 0.5, "steps": 1},
}


def config(folder, norm="BN", architecture="GeneralizedRCNN"):
    """A ResNet-18 with a narrow pyramid and narrow heads."""
    cfg = get_cfg()
    cfg.OUTPUT_DIR, cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = str(folder), "cpu", ""
    cfg.MODEL.META_ARCHITECTURE, cfg.DATASETS.TEST, cfg.SEED = architecture, (), 0
    resnet = cfg.MODEL.RESNETS
    resnet.DEPTH, resnet.STEM_OUT_CHANNELS, resnet.RES2_OUT_CHANNELS, resnet.NORM = 18, 16, 64, norm
    resnet.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.FREEZE_AT = "build_resnet_fpn_backbone", 0
    cfg.MODEL.FPN.IN_FEATURES, cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.FPN.NORM = resnet.OUT_FEATURES, 16, "BN"
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16], [32], [32], [64], [64]]
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 30
    cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.ROI_HEADS.IN_FEATURES = "StandardROIHeads", ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 2, 16
    head = cfg.MODEL.ROI_BOX_HEAD
    head.NAME, head.NUM_CONV, head.CONV_DIM, head.NORM = "FastRCNNConvFCHead", 1, 16, "BN"
    head.NUM_FC, head.FC_DIM, head.POOLER_RESOLUTION = 1, 32, 3
    if architecture == "RetinaNet":
        cfg.MODEL.BACKBONE.NAME, cfg.MODEL.RETINANET.NUM_CLASSES = "build_retinanet_resnet_fpn_backbone", 2
        cfg.MODEL.RETINANET.NUM_CONVS, cfg.MODEL.FPN.IN_FEATURES = 1, ["res3", "res4", "res5"]
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR, cfg.SOLVER.WARMUP_ITERS = (
        2,
        12,
        0.005,
        2,
    )
    cfg.SOLVER.CHECKPOINT_PERIOD, cfg.SOLVER.STEPS = 4, (8,)
    return cfg


def records():
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        found = Instances((SIDE, SIDE))
        found.gt_boxes, found.gt_classes = Boxes(torch.tensor([[8.0, 8.0, 40.0, 40.0]])), torch.tensor([1])
        image = torch.randint(0, 255, (3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
        yield {"image": image, "instances": found, "height": SIDE, "width": SIDE}


class Loader:
    """The same two images for ever, as detectron2's loaders never end."""

    def __iter__(self):
        batch = list(records())
        while True:
            yield batch


class Trainer(DefaultTrainer):
    @classmethod
    def build_train_loader(cls, cfg):
        return Loader()

    def build_writers(self):
        return [JSONWriter(os.path.join(self.cfg.OUTPUT_DIR, "metrics.json"))]


def trainer_of(folder, **changes):
    torch.manual_seed(0)
    logging.getLogger("detectron2").setLevel(logging.INFO)  # else it sets up its own handlers
    trainer = Trainer(config(folder, **changes))
    hook = PruningHook(**OPTIONS)
    trainer.register_hooks([hook])
    return trainer, hook


@pytest.mark.parametrize(
    ("norm", "architecture"),
    [("BN", "GeneralizedRCNN"), ("FrozenBN", "GeneralizedRCNN"), ("BN", "RetinaNet")],
)
def test_the_default_trainer_cuts_on_the_way(tmp_path, norm, architecture):
    trainer, hook = trainer_of(tmp_path, norm=norm, architecture=architecture)
    before = count_parameters(trainer.model)
    scheduler = trainer._hooks[1]
    optimizer = trainer.optimizer
    trainer.train()
    plan = hook.plan
    assert 0.5 < plan.kept_macs <= 0.6
    assert plan.equivalence["exact"]
    assert count_parameters(trainer.model) == plan.params < before
    assert scheduler._optimizer is trainer.optimizer is optimizer
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {
        id(p) for p in trainer.model.parameters() if p.requires_grad
    }
    assert trainer._hooks[0] is hook
    logged = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert logged[-1]["prune/cut_iter"] == 6
    assert logged[-1]["prune/kept_macs"] == pytest.approx(plan.kept_macs)
    pyramid = trainer.model.backbone
    for convs in (pyramid.lateral_convs, pyramid.output_convs):  # plain lists, beside the modules themselves
        assert all(any(conv is module for module in pyramid.modules()) for conv in convs)
    again = yolo_prune.restore(build_model(config(tmp_path, norm, architecture)), tmp_path / "plan.json")
    again.load_state_dict(torch.load(tmp_path / "model_final.pth", weights_only=True)["model"])
    example = list(records())[:1]
    one, other = (model.eval()(example)[0]["instances"].get_fields() for model in (trainer.model, again))
    assert torch.equal(one["scores"], other["scores"])


@pytest.mark.parametrize("kept", [3, 7])
def test_a_training_is_resumed_before_and_after_the_cut(tmp_path, kept):
    trainer, hook = trainer_of(tmp_path)
    trainer.train()
    (tmp_path / "last_checkpoint").write_text(f"model_{kept:07d}.pth")
    other, second = trainer_of(tmp_path)
    other.resume_or_load(resume=True)
    assert other.start_iter == kept + 1
    began, run_step = [], other._trainer.run_step

    def step():
        began.append({name: value.clone() for name, value in other.model.state_dict().items()})
        run_step()

    other._trainer.run_step = step
    other.train()
    saved = torch.load(tmp_path / f"model_{kept:07d}.pth", weights_only=True)["model"]
    assert began[0].keys() == saved.keys()
    assert all(torch.equal(value, saved[name]) for name, value in began[0].items())
    assert second.plan.params == count_parameters(other.model)
    assert second.plan.kept_macs <= 0.6
    if kept > 6:
        assert second.plan == hook.plan


def test_the_simple_trainer_takes_it_too(tmp_path):
    torch.manual_seed(0)
    model = build_model(config(tmp_path))
    trainer = SimpleTrainer(model, Loader(), torch.optim.SGD(model.parameters(), lr=0.005))
    hook = PruningHook(**OPTIONS, output_dir=tmp_path)
    trainer.register_hooks([hook])
    trainer.train(0, 12)
    assert hook.plan.params == count_parameters(model)
    assert (tmp_path / "plan.json").is_file()
