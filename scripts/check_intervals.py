#!/usr/bin/env python3
"""How often the 95 % intervals hold the truth, on data whose truth is known: run scripts/check_intervals.py.

A population of drawn images with detections of two models, the second a little worse, has an AP that is known (all of its
images). Data sets of a few images are taken from it; of each one, the interval of the first model's AP and of the
difference either hold what the population says, or do not. Also printed: how wide the intervals are, and what the rule of
thumb 0.1 / sqrt(images) would have called noise.
"""

from __future__ import annotations

import argparse

import numpy as np

from yolo_prune.accuracy.bootstrap import ClassMatches, ImageMatches, interval_of, resampled_accuracy
from yolo_prune.accuracy.coco import coco_ap_by_image

SIDE = 60.0


def population(images: int, classes: int, seed: int) -> tuple[dict, list[list[dict]]]:
    """Draw boxes, and what two models find of them: hard images are hard for both, and the second one misses more."""
    rng = np.random.default_rng(seed)
    truth: dict = {"categories": [{"id": c} for c in range(1, classes + 1)], "images": [], "annotations": []}
    found: list[list[dict]] = [[], []]
    frequency = np.arange(classes, 0, -1) ** 1.5
    for image in range(1, images + 1):
        truth["images"].append({"id": image})
        hard = rng.random()
        for _ in range(rng.geometric(0.2)):
            category = int(rng.choice(classes, p=frequency / frequency.sum())) + 1
            corner, seen = rng.random(2) * 600, rng.random()
            box = {"image_id": image, "category_id": category}
            truth["annotations"].append({**box, "bbox": [*corner, SIDE, SIDE]})
            shift, sure = rng.normal(0, 1 + 8 * hard, 2), rng.beta(4, 2)
            for model, finds in enumerate((0.85 - 0.4 * hard, 0.82 - 0.45 * hard)):
                own = rng.normal(0, 1.5, 2)
                if seen < finds:
                    moved = corner + shift + own
                    score = sure + rng.normal(0, 0.05)
                    found[model].append({**box, "bbox": [*moved, SIDE, SIDE], "score": float(score)})
        for _ in range(rng.poisson(1 + 3 * hard)):
            box = {"image_id": image, "category_id": int(rng.integers(classes)) + 1}
            bbox, score = [*(rng.random(2) * 600), SIDE, SIDE], rng.beta(2, 4)
            for model in range(2):
                found[model].append({**box, "bbox": bbox, "score": float(score + rng.normal(0, 0.05))})
    return truth, found


def take(sample: ImageMatches, images: np.ndarray) -> ImageMatches:
    """Return the matches of some images."""
    place = np.full(sample.images, -1)
    place[images] = np.arange(len(images))
    classes = []
    for one in sample.classes:
        kept = place[one.image] >= 0
        matches = (place[one.image[kept]], one.right[:, kept], one.ignored[:, kept], one.objects[images])
        classes.append(ClassMatches(*matches, one.score[kept]))
    return ImageMatches(len(images), tuple(classes))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--population", type=int, default=20000)
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    print(
        "classes images | AP holds, width | difference holds, width | truth: AP, difference | 0.1/sqrt(images)"
    )
    for classes in (3, 20):
        truth, found = population(options.population, classes, options.seed)
        samples = [coco_ap_by_image(truth, each)[1] for each in found]
        everything = np.ones((1, options.population), dtype=np.int64)
        aps = [float(sample.accuracy(everything)[0]) for sample in samples]
        wanted = (aps[0], aps[0] - aps[1])
        for images in (50, 100, 500):
            held, widths = np.zeros(2), np.zeros(2)
            for _ in range(options.trials):
                chosen = rng.choice(options.population, images, replace=False)
                first, second = (
                    resampled_accuracy(take(sample, chosen), options.resamples) for sample in samples
                )
                for index, values in enumerate((first, first - second)):
                    interval = interval_of(values)
                    if interval is not None:
                        held[index] += wanted[index] in interval
                        widths[index] += (interval.high - interval.low) / options.trials
            shares = held / options.trials
            print(
                f"{classes:7} {images:6} | {shares[0]:.3f}, {widths[0]:.3f} | {shares[1]:.3f}, {widths[1]:.3f}"
                f" | {wanted[0]:.3f}, {wanted[1]:+.3f} | {0.1 / images**0.5:.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
