"""Ultralytics as a host; the framework is imported when a method is called that needs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolo_prune.adapters.host import Attached, ExportedFile, Host
from yolo_prune.adapters.ultralytics.keys import KEYS
from yolo_prune.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from yolo_prune.accuracy.deployed import DeployedModel
    from yolo_prune.accuracy.task import Result, Task
    from yolo_prune.adapters.stored import LoadedModel
    from yolo_prune.criteria.calibration import Calibration
    from yolo_prune.cut.proven import Anatomy
    from yolo_prune.cut.record import PrunePlan
    from yolo_prune.imgsz import ImageSize
    from yolo_prune.options import TrainConfig
    from yolo_prune.train.retrained import RetrainResult


class UltralyticsHost:
    """See :class:`yolo_prune.adapters.host.Host`."""

    packages: tuple[str, ...] = ("ultralytics",)
    objects = "a YOLO object"
    modules = ""
    demo_model = "yolov8n.yaml"
    keys = KEYS

    def takes(self, model: Any) -> bool:
        """Tell whether a model belongs here: any path or name, a ``YOLO``, one of the trainer classes."""
        if isinstance(model, type):
            return any(base.__module__.partition(".")[0] == "ultralytics" for base in model.__mro__)
        return isinstance(model, (str, Path)) or hasattr(model, "_smart_load")

    def file_of(self, model: Any) -> Path | str | None:
        """Return a path itself, or the checkpoint of a ``YOLO``."""
        if isinstance(model, (str, Path)):
            return model
        path = getattr(model, "ckpt_path", None)
        return path if isinstance(path, (str, Path)) and Path(path).is_file() else None

    def write_object(self, model: Any, folder: Path) -> Path | None:
        """Return None: its objects came from files."""
        return None

    def guarded(self, *, trust: bool, imports: Sequence[str] = ()) -> AbstractContextManager[None]:
        """See :mod:`yolo_prune.adapters.ultralytics.guard`."""
        from yolo_prune.adapters.ultralytics.guard import guarded

        return guarded(trust=trust, imports=imports)

    def import_classes(self, imports: Sequence[str]) -> None:
        """Import the user's own classes."""
        from yolo_prune.adapters.ultralytics.own import import_classes

        import_classes(imports)

    def load(
        self,
        path: Path | str,
        *,
        weights: Path | str | None = None,
        trust: bool = False,
        device: str = "cpu",
        seed: int = 0,
    ) -> LoadedModel:
        """Load a checkpoint without running any code of its own."""
        if weights is not None:
            raise ConfigError(f"'{path}' holds its own weights or is trained: leave weights= out.")
        from yolo_prune.adapters.ultralytics.load import load_detector

        return load_detector(path, trust=trust, device=device, seed=seed)

    def save(
        self,
        path: Path,
        module: nn.Module,
        *,
        task: str,
        train_args: Mapping[str, Any],
        meta: Mapping[str, Any],
        trust: bool = False,
        plan: PrunePlan | None = None,
    ) -> Path:
        """Write a checkpoint that the plain host loads; it holds the module, and needs no plan."""
        from yolo_prune.adapters.ultralytics.save import save_detector

        return save_detector(path, module, task=task, train_args=train_args, meta=meta, trust=trust)

    def read_metadata(self, path: Path | str, *, trust: bool = False) -> dict[str, Any] | None:
        """Return what yolo_prune recorded in a checkpoint."""
        from yolo_prune.adapters.ultralytics.save import read_metadata

        return read_metadata(path, trust=trust)

    def write_metadata(self, path: Path, meta: Mapping[str, Any], *, trust: bool = False) -> Path:
        """Replace what yolo_prune recorded in a checkpoint."""
        from yolo_prune.adapters.ultralytics.save import write_metadata

        return write_metadata(path, meta, trust=trust)

    def anatomy(self, module: nn.Module, imgsz: ImageSize, keep_layers: tuple[str, ...] = ()) -> Anatomy:
        """Return how to trace a model, and at which size its MACs count."""
        from yolo_prune.adapters.ultralytics.anatomy import anatomy_of

        return anatomy_of(module, imgsz, keep_layers)

    def stride(self, module: nn.Module) -> int:
        """Return the largest stride of a model, at least 32 as the host pads to that."""
        from yolo_prune.adapters.ultralytics.anatomy import stride_of

        return stride_of(module)

    def calibration(
        self, module: nn.Module, batches: Sequence[Tensor], *, imgsz: ImageSize, classes: int, seed: int
    ) -> Calibration:
        """Return images, a random projection of the decoded predictions, and how far they are apart."""
        from yolo_prune.adapters.ultralytics.closeness import calibration_of

        return calibration_of(module, batches, imgsz=imgsz, classes=classes, seed=seed)

    def open_task(
        self,
        loaded: LoadedModel | ExportedFile,
        source: str | Path,
        *,
        split: str,
        batch: int,
        device: str,
        workers: int,
        rect: bool = True,
    ) -> Task:
        """Find the data that a model is measured on."""
        from yolo_prune.adapters.ultralytics.tasks import open_task

        return open_task(loaded, source, split=split, batch=batch, device=device, workers=workers, rect=rect)

    def read_export(self, metadata: Mapping[str, Any]) -> DeployedModel | None:
        """Return what the metadata of an exported file says, without torch; None where it is another host's."""
        from yolo_prune.adapters.ultralytics.exported import read_export

        return read_export(metadata)

    def deployed_model(self, loaded: LoadedModel, imgsz: ImageSize) -> DeployedModel:
        """Return what a checkpoint puts out as it is deployed, at an input size in pixels."""
        from yolo_prune.adapters.ultralytics.exported import describe

        return describe(loaded, imgsz)

    def open_export(self, path: str | Path) -> ExportedFile | None:
        """Read what an exported file says of itself; None for a path that names none."""
        from yolo_prune.adapters.ultralytics.exported import is_export, open_export

        return open_export(path) if is_export(path) else None

    def export(
        self,
        checkpoint: Path | str,
        out: Path | str,
        *,
        imgsz: ImageSize,
        batch: int = 1,
        trust: bool = False,
    ) -> Path:
        """Export a checkpoint with the host's own exporter."""
        from yolo_prune.adapters.ultralytics.export import export_file

        return export_file(checkpoint, out, imgsz=imgsz, batch=batch, trust=trust)

    def export_int8(
        self,
        checkpoint: Path,
        module: nn.Module,
        out: Path,
        task: Task,
        *,
        imgsz: ImageSize,
        batches: Sequence[Tensor],
        trust: bool = False,
    ) -> Result:
        """Export a checkpoint in 8 bits and return the accuracy of the file."""
        from yolo_prune.adapters.ultralytics.int8 import export_measured_int8

        return export_measured_int8(checkpoint, module, out, task, imgsz=imgsz, batches=batches, trust=trust)

    def check_training(self, train_args: Mapping[str, Any], *, of_cut_model: bool = False) -> None:
        """Refuse arguments that the installed host does not know or whose values it would not take."""
        from yolo_prune.adapters.ultralytics.options import check_train_args

        check_train_args(train_args)
        if of_cut_model:
            from yolo_prune.adapters.ultralytics.options import check_retraining_args

            check_retraining_args(train_args)

    def check_trainable(self, module: nn.Module, data: str) -> None:
        """Refuse nothing: the host trains all that it loads."""

    def retrain(self, module: nn.Module, **options: Any) -> RetrainResult:
        """Train a cut model with the host's own trainer."""
        from yolo_prune.adapters.ultralytics.training.train import retrain

        return retrain(module, **options)

    def train(self, config: TrainConfig) -> list[str]:
        """Train like ``yolo train``, and prune inside the training."""
        if config.weights is not None:
            raise ConfigError(
                "weights= is for architectures of other libraries: give the checkpoint as model=."
            )
        from yolo_prune.adapters.ultralytics.training.attach import train_from_config

        return train_from_config(config)

    def train_demo(
        self, data: Path, folder: Path, *, epochs: int, imgsz: int, device: str, seed: int
    ) -> Path:
        """Train the parent of the demonstration."""
        from yolo_prune.adapters.ultralytics.scratch import train_from_scratch

        return train_from_scratch(
            self.demo_model, data, folder, epochs=epochs, imgsz=imgsz, device=device, seed=seed
        )

    def attach(self, model: Any, **options: Any) -> Attached:
        """Attach pruning to a ``YOLO``."""
        from yolo_prune.adapters.ultralytics.training.attach import attach

        return attach(model, **options)

    def inrun_trainer(self, base: type, settings: Any = None, **options: Any) -> type:
        """Return a subclass of a trainer that prunes."""
        from yolo_prune.adapters.ultralytics.training.inrun import inrun_trainer

        return inrun_trainer(base, settings, **options)


HOST: Host = UltralyticsHost()
