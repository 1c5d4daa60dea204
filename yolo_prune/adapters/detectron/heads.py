"""What a detector says before it filters boxes: the outputs of its heads, which a cut is measured by.

Notation: N images, L locations (anchors of one level, regions or queries), K classes, M numbers of a box.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from yolo_prune.errors import ConfigError
from yolo_prune.graph.values import tensors_in

# Where heads are in the detectors of detectron2 and mayaku.
_HEADS = (
    *("proposal_generator.rpn_head", "rpn.head", "head", "sem_seg_head.predictor"),
    *("roi_heads.box_predictor", "roi_heads.mask_head.predictor"),
    *("roi_heads.keypoint_head.score_lowres", "roi_heads.keypoint_head.predictor"),
)


class Predictions(NamedTuple):
    """What a head says of its locations.

    Attributes:
        scores: Probabilities, shape (L, K).
        boxes: Beside them, shape (L, M).
    """

    scores: Tensor
    boxes: Tensor


def heads_in(model: nn.Module) -> list[str]:
    """Return the names of a detector's heads; of several in a list (a cascade) each."""
    modules = dict(model.named_modules())
    found: list[str] = []
    for name in _HEADS:
        if name in modules and not any(name.startswith(f"{other}.") for other in found):
            several = isinstance(modules[name], nn.ModuleList)
            found += [f"{name}.{child}" for child, _ in modules[name].named_children()] if several else [name]
    return found


def head_outputs(model: nn.Module, batch: Any) -> list[Any]:
    """Run a detector and return what its heads made, with gradient.

    Args:
        model: In evaluation mode.
        batch: As the model takes it.

    Returns:
        :class:`Predictions` where a head scores boxes, else its floating-point tensors.

    Raises:
        ConfigError: It has no head that is known.
    """
    names = heads_in(model)
    if not names:
        raise ConfigError(
            f"{type(model).__name__} has no head that the hook knows ({', '.join(_HEADS)}): give forward=, which runs "
            "the model on a batch and returns what it says before boxes are filtered."
        )
    made: list[Any] = []
    handles = [
        model.get_submodule(name).register_forward_hook(lambda module, inputs, output: made.append(output))
        for name in names
    ]
    try:
        model(batch)
    finally:
        for handle in handles:
            handle.remove()
    return [said for output in made for said in _read(output)]


def task_projection(seed: int = 0) -> Callable[[Any], Tensor]:
    """Return a scalar of :func:`head_outputs` whose squared gradient says how much predictions change.

    ``sum(s * scores) + sum(s * best * boxes / spread)`` with random signs s and the best score of every location: what
    a box is counts where there could be an object. Other outputs count relative to their spread.

    Args:
        seed: Of the signs.
    """
    generator = torch.Generator().manual_seed(seed)

    def signed(values: Tensor) -> Tensor:
        signs = torch.randint(0, 2, values.shape, generator=generator) * 2 - 1
        return (signs.to(values.device, values.dtype) * values).sum()

    def felt(output: Any) -> Tensor:
        if not isinstance(output, Predictions):
            return signed(output / output.detach().std(correction=0).clamp(min=1e-6))
        scores, boxes = output
        best = scores.detach().amax(1, keepdim=True)
        spread = boxes.detach().std(0, correction=0).clamp(min=1e-6)
        return signed(scores) + signed(best * boxes / spread)

    def project(outputs: Any) -> Tensor:
        return torch.stack([felt(output) for output in outputs]).sum()

    return project


def _read(output: Any) -> list[Any]:
    """Return predictions out of what one head returned."""
    if isinstance(output, Mapping) and {"pred_logits", "pred_boxes"} <= output.keys():  # queries
        return [
            Predictions(output["pred_logits"].sigmoid().flatten(0, 1), output["pred_boxes"].flatten(0, 1))
        ]
    if isinstance(output, Sequence) and output and isinstance(output[0], Mapping):
        return [said for one in output for said in _read(one)]
    if isinstance(output, tuple) and len(output) >= 2:
        first, second = (list(part) if isinstance(part, (list, tuple)) else [part] for part in output[:2])
        if len(first) == len(second) and all(map(_is_pair, first, second)):
            return [
                _predictions(logits, boxes) for logits, boxes in zip(first, second, strict=True) if len(boxes)
            ]
    return [tensor for tensor in tensors_in(output) if tensor.is_floating_point() and tensor.numel()]


def _is_pair(logits: Any, boxes: Any) -> bool:
    """Tell whether two tensors can be the scores and the boxes of the same locations."""
    if not isinstance(logits, Tensor) or not isinstance(boxes, Tensor) or logits.dim() != boxes.dim():
        return False
    if logits.dim() == 2:  # regions
        return len(logits) == len(boxes)
    if logits.dim() != 4 or logits.shape[2:] != boxes.shape[2:] or boxes.shape[1] % 4:
        return False
    return logits.shape[1] % (boxes.shape[1] // 4) == 0


def _predictions(logits: Tensor, boxes: Tensor) -> Predictions:
    """Read class logits and box numbers of regions (background last), or of the anchors of one level."""
    if logits.dim() == 2:
        return Predictions(logits.softmax(1)[:, :-1], boxes)
    anchors = boxes.shape[1] // 4
    return Predictions(_by_location(logits, anchors).sigmoid(), _by_location(boxes, anchors))


def _by_location(maps: Tensor, anchors: int) -> Tensor:
    """Return maps (N, A x C, H, W) as values of every anchor, shape (N x A x H x W, C)."""
    images, channels, height, width = maps.shape
    values = maps.reshape(images, anchors, channels // anchors, height, width)
    return values.movedim(2, -1).flatten(0, -2)
