"""torchvision's Faster R-CNN in a loop like the library's own, pruned on the way and scored by COCO AP every epoch.

Run it with ``python examples/torchvision_faster_rcnn.py``; your data set takes the place of ``draw``. A trained
detector needs no loop: ``yolo_prune.prune(model, data="data.yaml", keep_macs=0.5, epochs=20)``.
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn
from torchvision.ops import box_convert

from yolo_prune import PruningSession, restore
from yolo_prune.accuracy.coco import coco_ap

Samples = list[tuple[torch.Tensor, dict[str, torch.Tensor]]]
NAMES = ("dark square", "light square")  # label 0 is the background


def build(side: int) -> nn.Module:
    plain = {"weights": None, "weights_backbone": None, "min_size": side, "max_size": side}
    return fasterrcnn_mobilenet_v3_large_320_fpn(**plain, num_classes=1 + len(NAMES))


def draw(count: int, side: int, seed: int) -> Samples:
    """Draw images with one square each, and what torchvision wants to know of it."""
    generator, samples = torch.Generator().manual_seed(seed), []
    for index in range(count):
        image = 0.4 + 0.2 * torch.rand(3, side, side, generator=generator)
        edge = int(torch.randint(side // 4, side // 2, (), generator=generator))
        x, y = torch.randint(0, side - edge, (2,), generator=generator).tolist()
        image[:, y : y + edge, x : x + edge] = float(index % 2)
        box = torch.tensor([[x, y, x + edge, y + edge]], dtype=torch.float32)
        samples.append((image, {"boxes": box, "labels": torch.tensor([1 + index % 2])}))
    return samples


def losses_of(model: nn.Module, batch: Samples) -> dict[str, torch.Tensor]:
    return model([image for image, _ in batch], [target for _, target in batch])


@torch.no_grad()
def average_precision(model: nn.Module, samples: Samples) -> float:
    truth, found = [], []
    for index, (image, target) in enumerate(samples):
        for wanted, into in ((target, truth), (model.eval()([image])[0], found)):
            boxes = box_convert(wanted["boxes"], "xyxy", "xywh").tolist()
            scores = wanted.get("scores", torch.ones(len(boxes))).tolist()
            for box, label, score in zip(boxes, wanted["labels"].tolist(), scores, strict=True):
                known = {"id": len(into), "image_id": index, "category_id": label}
                into.append({**known, "bbox": box, "score": score})
    known = {"images": [{"id": index} for index in range(len(samples))], "annotations": truth}
    known["categories"] = [{"id": number, "name": name} for number, name in enumerate(NAMES, 1)]
    return coco_ap(known, found).ap


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in {"epochs": 20, "images": 128, "side": 160, "steps": 6}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path, default=Path("runs/torchvision_faster_rcnn"))
    options = parser.parse_args()
    samples, unseen = (draw(options.images // part, options.side, part) for part in (1, 2))
    batches = [samples[at : at + 4] for at in range(0, len(samples), 4)]
    torch.manual_seed(0)
    model = build(options.side)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=len(batches))
    session = PruningSession(
        *(model, optimizer, [samples[0][0]]),
        **{"total": options.epochs, "keep_macs": 0.5, "steps": options.steps},
        calibration=[[image for image, _ in batch] for batch in batches],
    )
    session.before_train()
    for epoch in range(options.epochs):
        model.train()
        for batch in batches:
            losses, apart = session.learn(partial(losses_of, batch=batch))  # apart: from the uncut model
            optimizer.zero_grad()
            (sum(losses.values()) + apart).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
            warm_up.step()
        print(f"epoch {epoch + 1}: COCO AP {(ap := average_precision(model, unseen)):.3f}")
        session.after_epoch(fitness=ap)
    plan = session.finish()
    options.out.mkdir(parents=True, exist_ok=True)
    plan.save(options.out / "plan.json")
    torch.save(model.state_dict(), options.out / "pruned.pt")
    again = restore(build(options.side), options.out / "plan.json")  # in another process, say
    again.load_state_dict(torch.load(options.out / "pruned.pt"))
    print(f"kept {plan.kept_macs:.2f} of the MACs, COCO AP {average_precision(again, unseen):.3f}")


if __name__ == "__main__":
    main()
