"""The task's projection: every reading layer feels it, the right channels count, and every head is understood."""

import pytest
import torch
from torch import nn
from ultralytics.nn import tasks

from yolo_prune.adapters.ultralytics.anatomy import anatomy_of
from yolo_prune.adapters.ultralytics.host import HOST
from yolo_prune.adapters.ultralytics.saliency import detection_projection
from yolo_prune.criteria.backward import run_with_gradients
from yolo_prune.criteria.calibration import Calibration
from yolo_prune.criteria.moments import collect_moments, reading_layers
from yolo_prune.errors import ConfigError

CLASSES = 3
MODELS = {
    "yolov5n.yaml": tasks.DetectionModel,
    "yolov8n.yaml": tasks.DetectionModel,
    "yolo11n.yaml": tasks.DetectionModel,
    "yolov10n.yaml": tasks.DetectionModel,
    "yolo26n.yaml": tasks.DetectionModel,
    "yolov8n-seg.yaml": tasks.SegmentationModel,
    "yolo26n-seg.yaml": tasks.SegmentationModel,
    "yolov8n-pose.yaml": tasks.PoseModel,
    "yolo26n-pose.yaml": tasks.PoseModel,
    "yolov8n-obb.yaml": tasks.OBBModel,
    "yolo26n-obb.yaml": tasks.OBBModel,
    "yolov8n-cls.yaml": tasks.ClassificationModel,
}
TWO_BRANCHES = ("yolov10", "yolo26")


def build(config: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[config](config, nc=CLASSES, verbose=False).eval()


def images(count: int = 1) -> torch.Tensor:
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def silent_layers(module: nn.Module) -> set[str]:
    """Weights of layers that run in training alone, such as heads whose only purpose is a loss."""
    ran, handles = set(), []
    for name, layer in module.named_modules():
        handles.append(layer.register_forward_hook(lambda *_, name=name: ran.add(f"{name}.weight")))
    with torch.no_grad():
        module(images())
    for handle in handles:
        handle.remove()
    return {f"{name}.weight" for name, _ in module.named_modules()} - ran


@pytest.mark.parametrize("config", MODELS)
def test_every_layer_that_reads_free_channels_feels_the_task(config):
    module = build(config)
    graph = anatomy_of(module, 64).cost_of(module).graph
    task = detection_projection(64, classes=CLASSES)
    seen = collect_moments(module, graph, Calibration([images(2)], task))
    deaf = set(reading_layers(module, graph)) - set(seen) - silent_layers(module)
    if config.startswith(
        TWO_BRANCHES
    ):  # the oldest supported host detaches this branch in evaluation as well
        deaf = {name for name in deaf if "one2one" not in name}
    assert not deaf
    assert all(moments.energy > 0 for moments in seen.values())


@pytest.mark.parametrize("config", MODELS)
def test_the_gradient_reaches_the_image(config):
    x = images().requires_grad_()
    run_with_gradients(build(config), Calibration([x], detection_projection(64, classes=CLASSES)), "running")
    assert float(x.grad.abs().max()) > 0


def test_a_decoder_of_queries_is_understood():
    """RT-DETR: raw boxes as shares of the image, layers first; its sorted predictions are not used."""
    boxes = torch.full((2, 1, 5, 4), 0.5, requires_grad=True)
    scores = torch.zeros(2, 1, 5, CLASSES, requires_grad=True)
    outputs = (torch.zeros(1, 5, 6), (boxes, scores, None, None, None))
    detection_projection(64, classes=CLASSES)(outputs).backward()
    assert torch.equal(boxes.grad[0], torch.zeros(1, 5, 4))  # only the last layer predicts
    torch.testing.assert_close(boxes.grad[1].abs(), torch.full((1, 5, 4), 4 * 64 / 32 * 0.5))
    torch.testing.assert_close(scores.grad[1].abs(), torch.full((1, 5, CLASSES), 0.25))


def projected(decoded: torch.Tensor, raw: object = None, **options) -> torch.Tensor:
    """Return the gradient of the projection with respect to decoded predictions."""
    decoded = decoded.clone().requires_grad_()
    detection_projection(64, **options)((decoded, raw if raw is not None else {})).backward()
    return decoded.grad


def predictions(extra: int = 0) -> torch.Tensor:
    """One image, two locations: a likely object of 4 x 16 px and an unlikely one of 8 x 8 px."""
    boxes = torch.tensor([[30.0, 30.0], [20.0, 20.0], [4.0, 8.0], [16.0, 8.0]])
    scores = torch.tensor([[0.9, 0.01], [0.2, 0.0], [0.1, 0.0]])
    return torch.cat([boxes, scores, torch.ones(extra, 2)])[None]


def test_probabilities_count_alike_and_boxes_by_size_and_probability():
    gradient = projected(predictions(), classes=CLASSES)[0].abs()
    torch.testing.assert_close(gradient[4:], torch.ones(3, 2))
    torch.testing.assert_close(gradient[:4], 4 * torch.tensor([[0.9 / 8, 0.01 / 8]]).expand(4, 2))


def test_boxes_can_count_less():
    gradient = projected(predictions(), classes=CLASSES, box_weight=0.5)[0].abs()
    torch.testing.assert_close(gradient[0], torch.tensor([0.45 / 8, 0.005 / 8]))


def test_without_a_number_of_classes_all_behind_the_box_is_a_class():
    assert torch.equal(projected(predictions()), projected(predictions(), classes=CLASSES))


def test_key_points_count_like_boxes_and_are_no_classes():
    gradient = projected(predictions(6), {"kpts": None}, classes=CLASSES)[0].abs()
    torch.testing.assert_close(gradient[4:7], torch.ones(3, 2))
    torch.testing.assert_close(gradient[7:], 4 * torch.tensor([[0.9 / 8, 0.01 / 8]]).expand(6, 2))


def test_an_angle_counts_by_probability():
    gradient = projected(predictions(1), {"angle": None}, classes=CLASSES)[0].abs()
    torch.testing.assert_close(gradient[7], 4 * torch.tensor([0.9, 0.01]))


def test_masks_count_by_probability():
    decoded, proto = predictions(4).requires_grad_(), torch.rand(1, 4, 8, 8, requires_grad=True)
    detection_projection(64, classes=CLASSES)(((decoded, proto), {})).backward()
    likely, unlikely = decoded.grad[0, 7:].norm(dim=0).tolist()
    assert likely > 10 * unlikely > 0
    assert float(proto.grad.abs().min()) > 0


def test_probabilities_of_a_classifier_count():
    logits = torch.randn(2, 5, requires_grad=True)
    detection_projection(64, classes=5)((logits.softmax(1), logits)).backward()
    assert float(logits.grad.abs().max()) > 0


def test_the_signs_depend_on_the_seed_and_change_from_batch_to_batch():
    first, again, other = (detection_projection(64, seed) for seed in (0, 0, 1))
    output = (predictions(), {})
    assert float(first(output)) == float(again(output))
    draws = {round(float(first(output)), 5) for _ in range(8)} | {round(float(other(output)), 5)}
    assert len(draws) > 1


def test_both_branches_of_a_two_branch_head_count():
    module, x = build("yolo26n.yaml"), images()
    outputs = module(x)
    raw = outputs[1]
    loss = detection_projection(64, classes=CLASSES)(outputs)
    wanted = [raw[branch][part] for branch in ("one2many", "one2one") for part in ("boxes", "scores")]
    assert all(float(g.abs().max()) > 0 for g in torch.autograd.grad(loss, wanted))


def test_the_anatomy_fits_the_model():
    module = build("yolov5n.yaml")
    anatomy = anatomy_of(module, 96, ("model.0",))
    assert tuple(anatomy.trace_input.shape) == (1, 3, 64, 64)
    assert tuple(anatomy.cost_input.shape) == (1, 3, 96, 96)
    with pytest.raises(ConfigError, match=r"^keep_layers='model\.99' matches no module of this model\."):
        anatomy_of(module, 64, ("model.0", "model.99")).cost_of(module)


def test_the_file_of_a_model_is_found(tmp_path):
    class Host:
        ckpt_path = str(tmp_path / "gone.pt")

    assert HOST.file_of("best.pt") == "best.pt"
    assert HOST.file_of(tmp_path) == tmp_path
    assert HOST.file_of(Host()) is None
    (tmp_path / "gone.pt").touch()
    assert HOST.file_of(Host()) == Host.ckpt_path
    assert HOST.file_of(nn.Identity()) is None


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_a_classifier_is_felt_in_every_image(classes):
    """Signs that are all alike add up to the sum of the probabilities, which never changes."""
    logits = torch.zeros(64, classes, dtype=torch.double, requires_grad=True)
    project = detection_projection(64, seed=0)
    project(logits.softmax(1)).backward()
    felt = logits.grad.abs().sum(1)
    assert felt.min() == felt.max() > 0  # equal probabilities: every image counts alike
    assert (logits.grad.sum(1).abs() < 1e-12).all()
