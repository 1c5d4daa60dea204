"""What is exported and timed: images in, one tensor out, all that the network decides by itself included."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from yolo_prune.adapters.torchvision.described import CLASSIFY, described


class Boxes(nn.Module):
    """A detector that returns one tensor (B, N, 6): x1, y1, x2, y2 in pixels, score, label; best first.

    Rows of zeros fill up images with fewer detections than another of the batch.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> Tensor:
        """Find boxes in images of shape (B, 3, H, W), float in [0, 1]."""
        found = [
            torch.cat([one["boxes"], one["scores"][:, None], one["labels"][:, None].to(one["boxes"])], 1)
            for one in self.detector([image for image in images])  # noqa: C416 - the exporter needs a list
        ]
        if len(found) == 1:
            return found[0][None]
        return nn.utils.rnn.pad_sequence(found, batch_first=True)


class Probabilities(nn.Module):
    """A classifier that returns probabilities, shape (B, C)."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """Classify images of shape (B, 3, H, W), float in [0, 1]."""
        scores: Tensor = self.classifier(images)
        return scores.softmax(1)


def deployed(module: nn.Module) -> nn.Module:
    """Return a copy of a network in evaluation mode, as it is exported and timed."""
    fresh = copy.deepcopy(module).eval().requires_grad_(False)
    return Probabilities(fresh) if described(module).task == CLASSIFY else Boxes(fresh)
