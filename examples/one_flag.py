"""One flag on a training: the same YOLO training twice, as it is and pruned on the way, then side by side.

Run it with ``python examples/one_flag.py``; on the command line the second one is
``yolo-prune train model=yolov8n.yaml data=data.yaml epochs=40 imgsz=160 keep_macs=0.5``.
"""

import argparse
from pathlib import Path

from ultralytics import YOLO

import yolo_prune
from yolo_prune.bench import compare
from yolo_prune.runs.demo_data import make_demo_detection


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="yolov8n.yaml", help="what YOLO() takes")
    parser.add_argument("--data", help="your data.yaml; drawn when not given")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--imgsz", type=int, default=160)
    parser.add_argument("--images", type=int, default=160, help="drawn")
    parser.add_argument("--seconds", type=float, default=5.0, help="of timing")
    parser.add_argument("--out", type=Path, default=Path("runs/one_flag"))
    options = parser.parse_args()
    drawn = {"train": options.images, "val": max(options.images // 3, 4), "imgsz": options.imgsz}
    data = options.data or str(make_demo_detection(options.out / "data", **drawn))
    training = {"data": data, "epochs": options.epochs, "imgsz": options.imgsz, "seed": 0, "plots": False}
    folder = {"project": str(options.out.resolve()), "exist_ok": True, "workers": 0}

    plain = YOLO(options.model)
    plain.train(**training, **folder, name="plain")

    pruned = YOLO(options.model)
    handle = yolo_prune.attach(pruned, keep_macs=0.5)  # the flag
    pruned.train(**training, **folder, name="pruned")

    files = {
        "plain": options.out / "plain" / "weights" / "best.pt",
        "pruned": Path(handle.result.best),
    }
    for name, file in files.items():
        model = YOLO(file)  # the plain host loads both
        score = model.val(data=data, imgsz=options.imgsz, plots=False, verbose=False, workers=0).box.map
        print(
            f"{name}: {sum(p.numel() for p in model.model.parameters()):,} parameters, mAP50-95 {score:.3f}"
        )
    timed = compare(files, runtime="torch", imgsz=options.imgsz, threads=1, seconds=options.seconds)
    print(f"kept {handle.result.plan.kept_macs:.2f} of the MACs, {timed.ratios['pruned']['latency']} as fast")


if __name__ == "__main__":
    main()
