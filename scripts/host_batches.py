"""One step of the host's own training on made-up labels, for any task."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

UNSUITED = (KeyError, TypeError, AttributeError, NotImplementedError, IndexError)


def training_step(model: nn.Module, task: str, example: torch.Tensor) -> str:
    """Run forward, loss and backward; return the loss as text, or raise RuntimeError when a number is not finite."""
    from ultralytics.cfg import get_cfg

    model.args = get_cfg()
    model.train()
    unknown_before = set(vars(model))
    if not hasattr(model, "nc"):  # the host's trainer sets it
        model.nc = len(model.names)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    side = max(example.shape[-1], 128)
    text = ""
    try:
        loss = model.loss(labelled(model, task, side))[0].sum()
    except UNSUITED:
        text = "sum "
        loss = sum(
            t.float().square().mean()
            for t in tensors(model(torch.rand(2, 3, side, side)))
            if t.is_floating_point()
        )
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if not (torch.isfinite(loss) and gradients and all(bool(g.isfinite().all()) for g in gradients)):
        raise RuntimeError(f"training gives loss {float(loss)} or gradients that are not finite")
    model.zero_grad(set_to_none=True)
    for attribute in {*vars(model), "args"} - (unknown_before - {"criterion", "args"}):
        delattr(model, attribute)
    model.eval()
    return f"{text}{float(loss.detach()):.3g}"


def tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for item in items for tensor in tensors(item)]


def labelled(model: nn.Module, task: str, side: int) -> dict[str, torch.Tensor]:
    """Two images with one object each, labelled for a task."""
    images = torch.rand(2, 3, side, side)
    if task == "classify":
        return {"img": images, "cls": torch.tensor([0, 1])}
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.4, 0.6, 0.5, 0.3]])
    if task == "obb":
        boxes = torch.cat([boxes, torch.tensor([[0.1], [0.3]])], 1)
    masks = torch.zeros(2, side // 4, side // 4)
    masks[:, side // 16 : side // 8, side // 16 : side // 8] = 1
    shape = getattr(model.model[-1], "kpt_shape", (17, 3))
    return {
        "img": images,
        "batch_idx": torch.tensor([0.0, 1.0]),
        "cls": torch.zeros(2, 1),
        "bboxes": boxes,
        "masks": masks,
        "sem_masks": torch.zeros(2, side // 4, side // 4, dtype=torch.long),
        "semantic_mask": torch.zeros(2, side, side, dtype=torch.long),
        "keypoints": torch.rand(2, *shape).clamp(0.3, 0.7),
        "depth": 1 + torch.rand(2, side, side),
    }
