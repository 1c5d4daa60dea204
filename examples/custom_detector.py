"""A detector of your own, from training to report: trained and pruned in one loop, scored by COCO AP, timed.

Run it with ``python examples/custom_detector.py``; ``--epochs 3 --images 32`` is a quick look.
"""

import argparse
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torchvision.ops import batched_nms, box_convert

from yolo_prune import PruningSession, report_modules
from yolo_prune.accuracy.coco import coco_ap

SIDE, STRIDE, CLASSES = 96, 8, ("square", "disc")


def conv(inside: int, outside: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside), nn.SiLU()
    )


class Detector(nn.Module):
    """One prediction for every cell of 8 x 8 pixels: a box, whether there is a thing, and what it is."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            conv(3, width, 2),
            conv(width, 2 * width, 2),
            conv(2 * width, 4 * width, 2),
            conv(4 * width, 4 * width),
        )
        self.neck = conv(4 * width, 4 * width)
        self.head = nn.Conv2d(4 * width, 5 + len(CLASSES), 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return cx, cy, w, h in pixels, then probabilities, shape (B, 5 + classes, cells)."""
        features = self.backbone(images)
        raw = self.head(features + self.neck(features))
        rows, columns = (torch.arange(size, device=raw.device) + 0.5 for size in raw.shape[2:])
        grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy")) * STRIDE
        boxes = torch.cat([grid + raw[:, :2] * STRIDE, SIDE * raw[:, 2:4].sigmoid()], 1)
        return torch.cat([boxes, raw[:, 4:].sigmoid()], 1).flatten(2)


def draw(count: int, seed: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Draw images of squares and discs on noise, and their boxes: cx, cy, w, h, class."""
    generator = torch.Generator().manual_seed(seed)
    images, targets = 0.3 * torch.rand(count, 3, SIDE, SIDE, generator=generator), []
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    for image in images:
        boxes = []
        for cell in torch.randperm(9, generator=generator)[:3].tolist():  # no two in one third of the image
            radius = int(torch.randint(6, 13, (), generator=generator))
            kind = int(torch.randint(0, 2, (), generator=generator))
            cx, cy = (
                16 + 32 * part + int(torch.randint(-3, 4, (), generator=generator))
                for part in divmod(cell, 3)
            )
            dx, dy = (x - cx).abs(), (y - cy).abs()
            inside = torch.maximum(dx, dy) < radius if kind == 0 else dx**2 + dy**2 < radius**2
            image[:, inside] = 0.5 + 0.5 * torch.rand(3, 1, generator=generator)
            boxes.append([cx, cy, 2 * radius, 2 * radius, kind])
        targets.append(torch.tensor(boxes, dtype=torch.float32))
    return images, targets


def loss_of(outputs: torch.Tensor, targets: list[torch.Tensor]) -> torch.Tensor:
    """Return objectness everywhere, and box and class in the cell of each thing's centre."""
    wanted = torch.zeros_like(outputs[:, 4])
    total = outputs.new_zeros(())
    for index, things in enumerate(targets):
        cells = (things[:, 1] // STRIDE * (SIDE // STRIDE) + things[:, 0] // STRIDE).long()
        wanted[index, cells] = 1.0
        found = outputs[index, :, cells].T
        total = total + F.smooth_l1_loss(found[:, :4] / STRIDE, things[:, :4] / STRIDE)
        total = total + F.binary_cross_entropy(
            found[:, 5:], F.one_hot(things[:, 4].long(), len(CLASSES)).float()
        )
    there = F.binary_cross_entropy(outputs[:, 4], wanted, reduction="sum") / wanted.sum()
    return total / len(targets) + there


@torch.no_grad()
def accuracy_of(model: nn.Module, images: torch.Tensor, targets: list[torch.Tensor]) -> dict[str, float]:
    """Return COCO AP and AP50 on drawn images."""
    truth, found = [], []
    for index, output in enumerate(model(images).transpose(1, 2)):
        scores, kinds = (output[:, 4:5] * output[:, 5:]).max(1)
        boxes = box_convert(output[:, :4], "cxcywh", "xyxy")
        for at in batched_nms(boxes, scores, kinds, 0.6)[:100].tolist():
            box = box_convert(boxes[at], "xyxy", "xywh").tolist()
            found.append(
                {"image_id": index, "category_id": int(kinds[at]), "bbox": box, "score": float(scores[at])}
            )
        for thing in targets[index]:
            box = box_convert(thing[:4], "cxcywh", "xywh").tolist()
            truth.append({"id": len(truth), "image_id": index, "category_id": int(thing[4]), "bbox": box})
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES)]
    known = {"images": [{"id": index} for index in range(len(images))], "categories": categories}
    result = coco_ap({**known, "annotations": truth}, found)
    return {"ap": result.ap, "ap50": result.ap50}


def train(
    model: nn.Module, images: torch.Tensor, targets: list[torch.Tensor], epochs: int, **prune: float
) -> PruningSession | None:
    """Train; with a budget, prune on the way: the five lines that name the session."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    batches = [(images[at : at + 16], targets[at : at + 16]) for at in range(0, len(images), 16)]
    session = None
    if prune:
        calibration = [batch for batch, _ in batches]
        session = PruningSession(model, optimizer, images[:1], total=epochs, calibration=calibration, **prune)
        session.before_train()
    for _ in range(epochs):
        model.train()
        for batch, things in batches:
            outputs = model(batch)
            loss = loss_of(outputs, things)
            if session:
                loss = loss + session.teacher_loss(batch, outputs)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
        if session:
            session.after_epoch()
    return session


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--keep-macs", type=float, default=0.5)
    parser.add_argument("--out", type=Path, default=Path("runs/custom_detector"))
    options = parser.parse_args()
    images, targets = draw(options.images, seed=0)
    unseen = draw(64, seed=1)
    models = {}
    for name, budget in {"parent": {}, "pruned": {"keep_macs": options.keep_macs}}.items():
        torch.manual_seed(0)
        models[name] = Detector()
        session = train(models[name], images, targets, options.epochs, **budget)
    plan = session.finish()
    options.out.mkdir(parents=True, exist_ok=True)
    plan.save(options.out / "plan.json")
    torch.save(models["pruned"].state_dict(), options.out / "pruned.pt")  # comes back by yolo_prune.restore
    report_modules(
        models,
        images[:1],
        options.out,
        accuracy=lambda model: accuracy_of(model, *unseen),
        plan=plan,
        seconds=2.0,
    )
    print((options.out / "report.md").read_text())


if __name__ == "__main__":
    main()
