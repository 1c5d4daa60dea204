"""A classifier of timm: trained by a loop of one's own, then pruned, retrained and reported as an object.

Run it with ``python examples/timm_classifier.py``; ``--data`` takes a folder of your own, with ``train`` and ``val``
that hold one folder of images a class.
"""

import argparse
from pathlib import Path

import timm
import torch
from torch.nn import functional as F  # noqa: N812
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2
from torchvision.utils import save_image

from yolo_prune import prune


def draw(folder: Path, count: int, side: int) -> None:
    """Draw bars that lie or stand, on noise."""
    generator = torch.Generator().manual_seed(0)
    for split, images in (("train", count), ("val", count // 2)):
        for kind in ("lies", "stands"):
            (folder / split / kind).mkdir(parents=True, exist_ok=True)
            for index in range(images):
                image = 0.4 * torch.rand(3, side, side, generator=generator)
                at = int(torch.randint(0, side - 8, (), generator=generator))
                place = image[:, at : at + 8] if kind == "lies" else image[:, :, at : at + 8]
                place += 0.4
                save_image(image, folder / split / kind / f"{index}.png")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="test_resnet", help="a name that timm.create_model knows")
    parser.add_argument("--data", type=Path, help="drawn when not given")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--images", type=int, default=64, help="drawn, of each class")
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--keep-macs", type=float, default=0.5)
    parser.add_argument("--bench", action=argparse.BooleanOptionalAction, default=True, help="measure speed")
    parser.add_argument("--out", type=Path, default=Path("runs/timm_classifier"))
    options = parser.parse_args()
    data = options.data or options.out / "bars"
    if options.data is None:
        draw(data, options.images, options.side)

    torch.manual_seed(0)
    side = [options.side, options.side]
    as_tensor = [v2.ToImage(), v2.Resize(side), v2.ToDtype(torch.float32, scale=True)]
    folder = ImageFolder(str(data / "train"), v2.Compose(as_tensor))
    loader = torch.utils.data.DataLoader(folder, batch_size=16, shuffle=True)
    model = timm.create_model(options.model, num_classes=len(folder.classes))
    normalise = v2.Normalize(model.pretrained_cfg["mean"], model.pretrained_cfg["std"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for epoch in range(options.epochs):
        total = 0.0
        for images, labels in loader:
            loss = F.cross_entropy(model(normalise(images)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach())
        print(f"epoch {epoch + 1}: loss {total / len(loader):.3f}")

    result = prune(  # the module itself: its name is found, and it stays as it is
        model,
        data=data,
        keep_macs=options.keep_macs,
        imgsz=options.side,
        epochs=max(options.epochs // 2, 1),
        lr0=0.01,
        workers=0,
        bench=options.bench,
        project=str(options.out),
        name="run",
        exist_ok=True,
    )
    print((result.folder / "report.md").read_text())
    print(f"{result.best} holds {result.plan.kept_params:.2f} of the parameters")


if __name__ == "__main__":
    main()
