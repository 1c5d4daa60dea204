"""A detector of your own in a loop of your own: trained, pruned on the way, scored by COCO AP, timed, reported."""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation as Conv
from torchvision.ops import box_convert

from yolo_prune import PrunePlan, PruningSession, report_modules
from yolo_prune.accuracy.coco import coco_ap

SIDE, STRIDE = 96, 8


class Detector(nn.Module):
    """Of every cell of 8 x 8 pixels: a box (cx, cy, w, h in pixels), and how likely a disc has its centre there."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(Conv(3, 32, 3, 2), Conv(32, 64, 3, 2), Conv(64, 128, 3, 2))
        self.head = nn.Conv2d(128, 5, 1)

    def forward(self, images: Tensor) -> Tensor:
        raw = self.head(self.backbone(images))
        rows, columns = (torch.arange(size, device=raw.device) + 0.5 for size in raw.shape[2:])
        grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy")) * STRIDE
        found = [grid + raw[:, :2] * STRIDE, SIDE * raw[:, 2:4].sigmoid(), raw[:, 4:].sigmoid()]
        return torch.cat(found, 1).flatten(2)  # (B, 5, cells)


def draw(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw one disc on noise in every image, and return its box."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.6 * torch.rand(count, 3, SIDE, SIDE, generator=generator)
    centres = torch.randint(16, SIDE - 16, (count, 2, 1, 1), generator=generator)
    radii = torch.randint(6, 14, (count, 1, 1, 1), generator=generator)
    places = torch.stack(torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="xy"))
    inside = ((places - centres) ** 2).sum(1, keepdim=True) < radii**2
    return torch.where(inside, 0.7, images), torch.cat([centres, 2 * radii, 2 * radii], 1).flatten(1).float()


def loss_of(outputs: Tensor, boxes: Tensor) -> Tensor:
    cells = (boxes[:, 1] // STRIDE * (SIDE // STRIDE) + boxes[:, 0] // STRIDE).long()
    there = nn.functional.one_hot(cells, outputs.shape[2]).float()
    near = outputs[torch.arange(len(boxes)), :4, cells]
    scores = nn.functional.binary_cross_entropy(outputs[:, 4], there, reduction="sum") / len(boxes)
    return scores + nn.functional.smooth_l1_loss(near / STRIDE, boxes / STRIDE)


def accuracy_of(model: nn.Module, images: Tensor, boxes: Tensor) -> dict[str, float]:
    best = torch.stack([output[:, output[4].argmax()] for output in model(images)])
    known, found = (box_convert(rows[:, :4], "cxcywh", "xywh").tolist() for rows in (boxes, best))
    truth = [{"id": at, "image_id": at, "category_id": 0, "bbox": box} for at, box in enumerate(known)]
    found = [truth[at] | {"bbox": box, "score": float(best[at, 4])} for at, box in enumerate(found)]
    known = {"images": [{"id": at} for at in range(len(images))], "categories": [{"id": 0, "name": "disc"}]}
    return {"ap": coco_ap({**known, "annotations": truth}, found).ap}


def train(model: nn.Module, images: Tensor, boxes: Tensor, epochs: int, **budget: float) -> PrunePlan:
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    more = {"total": epochs, "calibration": images.split(16), **budget}
    session = PruningSession(model, optimizer, images[:1], **more) if budget else None  # 1
    if session:
        session.before_train()  # 2
    for _ in range(epochs):
        for batch, wanted in zip(images.split(16), boxes.split(16), strict=True):
            outputs = model.train()(batch)
            loss = loss_of(outputs, wanted) + (session.teacher_loss(batch, outputs) if session else 0)  # 3
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if session:
            session.after_epoch()  # 4
    return session.finish() if session else None  # 5


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in {"epochs": 20, "images": 256, "out": Path("runs/custom_detector")}.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    options = parser.parse_args()
    torch.manual_seed(0)
    models = {"parent": Detector(), "pruned": Detector()}
    data, unseen = draw(options.images, seed=0), draw(64, seed=1)
    train(models["parent"], *data, options.epochs)
    plan = train(models["pruned"], *data, options.epochs, keep_macs=0.5)
    score = {"accuracy": lambda model: accuracy_of(model.eval(), *unseen)}
    report_modules(models, data[0][:1], options.out, plan=plan, seconds=2.0, **score)
    # To come back: yolo_prune.restore(Detector(), "plan.json") takes the weights again.
    plan.save(options.out / "plan.json")
    torch.save(models["pruned"].state_dict(), options.out / "pruned.pt")
    print((options.out / "report.md").read_text())


if __name__ == "__main__":
    main()
