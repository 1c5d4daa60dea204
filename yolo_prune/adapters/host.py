"""What a run needs of a framework that detectors are trained with; each one has a folder beside this file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

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
    from yolo_prune.options.host_keys import HostKeys
    from yolo_prune.train.retrained import RetrainResult


class ExportedFile(Protocol):
    """A file that a host exported; it takes a module's place in an evaluation."""

    @property
    def path(self) -> Path:
        """The file."""

    @property
    def task(self) -> str:
        """The host's name of the task."""

    @property
    def names(self) -> Mapping[int, str]:
        """Class index -> name."""

    @property
    def imgsz(self) -> ImageSize:
        """Size of its input in pixels."""


class Attached(Protocol):
    """Pruning that is attached to a model object of a host."""

    @property
    def active(self) -> bool:
        """Whether the object's next training is pruned."""

    @property
    def result(self) -> Any:
        """What the last training left behind."""

    def remove(self) -> None:
        """Give the object its own training back."""


class Host(Protocol):
    """One framework: files, networks, data, exports and trainings as this package wants them.

    A second host is a folder in ``adapters`` whose ``host.py`` holds a ``HOST`` of this kind. Nothing of the
    framework is imported before a method that needs it is called.

    Attributes:
        packages: Distributions whose versions decide what a run finds, as pip names them.
        objects: What it takes beside a path, as in "expected a checkpoint path or ..."; empty where nothing.
        modules: What :meth:`write_object` can write, as in "... builds by name"; empty where nothing.
        demo_model: Architecture that the demonstration trains.
        keys: Its own options.
    """

    packages: tuple[str, ...]
    objects: str
    modules: str
    demo_model: str
    keys: HostKeys

    def takes(self, model: Any) -> bool:
        """Tell whether a path, a model object or a trainer class belongs to this host."""

    def file_of(self, model: Any) -> Path | str | None:
        """Return the file that a model object came from, a path itself; None where there is none."""

    def write_object(self, model: Any, folder: Path) -> Path | None:
        """Write a model object that came from no file into a folder; None where there are no such files.

        The same weights are written under the same name, so that a run with them can go on.

        Raises:
            CheckpointError: The object is none that a file can hold.
        """

    # Files.

    def guarded(self, *, trust: bool, imports: Sequence[str] = ()) -> AbstractContextManager[None]:
        """Keep the host from running code out of files inside the block, and lend it the user's own classes."""

    def import_classes(self, imports: Sequence[str]) -> None:
        """Import Python files or modules that hold the user's own classes."""

    def load(
        self,
        path: Path | str,
        *,
        weights: Path | str | None = None,
        trust: bool = False,
        device: str = "cpu",
        seed: int = 0,
    ) -> LoadedModel:
        """See :func:`yolo_prune.adapters.checkpoint.load_detector`."""

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
        """See :func:`yolo_prune.adapters.checkpoint.save_detector`.

        ``plan`` is what was cut of the module since it was loaded, for files that do not hold the module itself.
        """

    def read_metadata(self, path: Path | str, *, trust: bool = False) -> dict[str, Any] | None:
        """See :func:`yolo_prune.adapters.checkpoint.read_metadata`."""

    def write_metadata(self, path: Path, meta: Mapping[str, Any], *, trust: bool = False) -> Path:
        """See :func:`yolo_prune.adapters.checkpoint.write_metadata`."""

    # The network and its data.

    def anatomy(self, module: nn.Module, imgsz: ImageSize, keep_layers: tuple[str, ...] = ()) -> Anatomy:
        """Return how to run a model, which modules keep their channels, and the input that MACs count at."""

    def stride(self, module: nn.Module) -> int:
        """Return what the sides of a model's images are multiples of, in pixels."""

    def calibration(
        self, module: nn.Module, batches: Sequence[Tensor], *, imgsz: ImageSize, classes: int, seed: int
    ) -> Calibration:
        """Return what a model is measured on: images, what its task feels of its outputs, and how far two are apart."""

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
        """Find the data that a model is measured on.

        Raises:
            DataError: The data is missing or broken, or has other classes than the model.
        """

    # Deployment.

    def read_export(self, metadata: Mapping[str, Any]) -> DeployedModel | None:
        """Return what a file of this host's says in its metadata, without torch; None where another exported it."""

    def deployed_model(self, loaded: LoadedModel, imgsz: ImageSize) -> DeployedModel:
        """Return what a checkpoint puts out as it is deployed, at an input size in pixels."""

    def open_export(self, path: str | Path) -> ExportedFile | None:
        """Return a file that the host exported, None for a path that names no export."""

    def export(
        self,
        checkpoint: Path | str,
        out: Path | str,
        *,
        imgsz: ImageSize,
        batch: int = 1,
        trust: bool = False,
    ) -> Path:
        """Export a checkpoint, float32, to ONNX or TorchScript, as the ending of ``out`` says; nothing is installed.

        Raises:
            MissingRuntimeError: What the export needs is not installed.
            ConfigError: ``out`` has another ending, or ``imgsz`` does not fit the model.
            BenchmarkError: The export failed.
        """

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
        """Export a checkpoint in 8 bits, calibrated on training images as validation sees them; return its accuracy.

        For ONNX Runtime, ``out`` ends in ``.onnx``, for OpenVINO in ``_openvino_model``.
        """

    # Training.

    def check_training(self, train_args: Mapping[str, Any], *, of_cut_model: bool = False) -> None:
        """Refuse training arguments that the installed host does not know, or that a cut model cannot follow.

        Raises:
            ConfigError: An argument is unknown, means nothing here, or has a wrong value.
        """

    def check_trainable(self, module: nn.Module, data: str) -> None:
        """Refuse a model that :meth:`retrain` could not train on this data, before anything is cut.

        Raises:
            DataError: It learns from what the data has not.
        """

    def retrain(self, module: nn.Module, **options: Any) -> RetrainResult:
        """Train a cut model and keep it cut.

        The options are ``data``, ``epochs``, ``imgsz``, ``batch``, ``device``, ``seed``, ``run_dir``, ``teacher``,
        ``distill``, ``workers``, ``lr0``, ``extra`` (the host's own), ``resume``, ``trust``, ``meta`` and ``task``.
        """

    def train(self, config: TrainConfig) -> list[str]:
        """Run ``yolo-prune train`` and return what to print."""

    def train_demo(
        self, data: Path, folder: Path, *, epochs: int, imgsz: int, device: str, seed: int
    ) -> Path:
        """Train :attr:`demo_model` from random weights and return its checkpoint."""

    def attach(self, model: Any, **options: Any) -> Attached:
        """See :func:`yolo_prune.attach`."""

    def inrun_trainer(self, base: type, settings: Any = None, **options: Any) -> type:
        """See :func:`yolo_prune.inrun_trainer`."""
