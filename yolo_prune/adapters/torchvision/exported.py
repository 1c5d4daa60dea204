"""ONNX files of this host in the place of a network: evaluated as they are deployed, through ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from yolo_prune.adapters.torchvision.described import CLASSIFY, Described, describe_
from yolo_prune.adapters.torchvision.stated import read_export
from yolo_prune.errors import CheckpointError, ConfigError
from yolo_prune.imgsz import ImageSize, height_width, read_size, size_text
from yolo_prune.runtimes.onnxruntime import open_session
from yolo_prune.runtimes.runtime import Settings, import_runtime


class ExportedNetwork(nn.Module):
    """An exported file that is called like the network it was made from, image by image, on the CPU.

    Attributes:
        path: The file.
        stretched: Whether images are stretched to its input.
    """

    def __init__(self, path: Path) -> None:
        """Open a file.

        Raises:
            MissingRuntimeError: onnxruntime is not installed.
            CheckpointError: The file is no model of ONNX, or not of this host.
        """
        super().__init__()
        self.path = path
        self._session = open_session(
            import_runtime("onnxruntime"), path, Settings("cpu", torch.get_num_threads(), 1)
        )
        facts = self._session.get_modelmeta().custom_metadata_map
        stated = read_export(facts)
        if stated is None or "architecture" not in facts:
            raise CheckpointError(f"'{path}' does not say what its outputs mean: export it again.")
        self.stretched = stated.stretched
        labels, names = stated.labels, tuple(stated.names.values())
        what = Described(facts["architecture"], stated.task, len(labels), stated.imgsz, names, labels)
        describe_(self, what)
        self._what = what
        self._batch = self._session.get_inputs()[0].shape[0]

    @property
    def task(self) -> str:
        """``detect`` or ``classify``."""
        return self._what.task

    @property
    def names(self) -> dict[int, str]:
        """Class index -> name."""
        return self._what.numbered

    @property
    def imgsz(self) -> ImageSize:
        """Size of its input in pixels."""
        return self._what.imgsz

    def forward(self, images: Any) -> Any:
        """Run images (B, 3, H, W), or a list of images: boxes of each, or probabilities (B, C).

        Raises:
            ConfigError: The file takes images of another size, or several at once.
        """
        found = [self._run(image[None]) for image in images]
        if self.task == CLASSIFY:
            return torch.cat(found)
        return [
            {"boxes": rows[0, :, :4], "scores": rows[0, :, 4], "labels": rows[0, :, 5].long()}
            for rows in found
        ]

    def _run(self, image: Tensor) -> Tensor:
        height, width = height_width(self.imgsz)
        if tuple(image.shape[2:]) != (height, width) or self._batch != 1:
            got = size_text(read_size(list(image.shape[2:])))
            raise ConfigError(
                f"'{self.path}' takes {self._batch} images of {size_text(self.imgsz)} px at once, got 1 of {got} px. "
                f"Leave imgsz= out, or export it again with batch 1."
            )
        outputs = self._session.run(None, {"images": image.cpu().numpy()})
        return torch.from_numpy(outputs[0])
