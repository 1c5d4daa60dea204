"""torchvision and timm as a host; the libraries are imported when a method is called that needs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from yolo_prune.adapters.host import ExportedFile, Host
from yolo_prune.adapters.torchvision.keys import KEYS
from yolo_prune.adapters.torchvision.names import LIBRARIES, is_export_of_ours, is_ours, names_architecture
from yolo_prune.errors import CheckpointError, ConfigError

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

_NO_TRAINER = (
    "torchvision and timm have no trainer to prune in: use yolo_prune.PruningSession in your own loop, or "
    "'yolo-prune train model=torchvision:... keep_macs=...'."
)


class TorchvisionHost:
    """See :class:`yolo_prune.adapters.host.Host`."""

    packages: tuple[str, ...] = ("torchvision", "timm")
    objects = ""  # no trainer to attach to
    modules = "a network that torchvision or timm builds by name"
    demo_model = "torchvision:ssdlite320_mobilenet_v3_large"
    keys = KEYS

    def takes(self, model: Any) -> bool:
        """Tell whether a model belongs here: a name, a file of this host, a module of one of its libraries."""
        if isinstance(model, (str, Path)):
            return is_ours(model)
        return not isinstance(model, type) and type(model).__module__.partition(".")[0] in LIBRARIES

    def file_of(self, model: Any) -> Path | str | None:
        """Return the name or path itself."""
        return model if isinstance(model, (str, Path)) else None

    def write_object(self, model: Any, folder: Path) -> Path | None:
        """Write a network of one of the libraries by the name that builds it."""
        from yolo_prune.adapters.torchvision.objects import write_object

        return write_object(model, folder)

    def guarded(self, *, trust: bool, imports: Sequence[str] = ()) -> AbstractContextManager[None]:
        """Do nothing: the files are plain values, and are read as such."""
        return nullcontext()

    def import_classes(self, imports: Sequence[str]) -> None:
        """Do nothing: no file names a class."""

    def load(
        self,
        path: Path | str,
        *,
        weights: Path | str | None = None,
        trust: bool = False,
        device: str = "cpu",
        seed: int = 0,
    ) -> LoadedModel:
        """Load a file of this host, or build an architecture with weights of the user."""
        from yolo_prune.adapters.torchvision.files import load

        return load(path, weights=weights, device=device, seed=seed)

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
        """Write name, plan and state dict of a network."""
        from yolo_prune.adapters.torchvision.files import save

        return save(path, module, train_args=train_args, meta=meta, plan=plan)

    def read_metadata(self, path: Path | str, *, trust: bool = False) -> dict[str, Any] | None:
        """Return what yolo_prune recorded in a file."""
        from yolo_prune.adapters.torchvision.files import read_metadata

        return read_metadata(Path(path))

    def write_metadata(self, path: Path, meta: Mapping[str, Any], *, trust: bool = False) -> Path:
        """Replace what yolo_prune recorded in a file."""
        from yolo_prune.adapters.torchvision.files import write_metadata

        return write_metadata(path, meta)

    def anatomy(self, module: nn.Module, imgsz: ImageSize, keep_layers: tuple[str, ...] = ()) -> Anatomy:
        """Return what to trace a network on, and at which size its MACs count."""
        from yolo_prune.adapters.torchvision.anatomy import anatomy_of

        return anatomy_of(module, imgsz, keep_layers)

    def stride(self, module: nn.Module) -> int:
        """Return what the sides of images are multiples of."""
        from yolo_prune.adapters.torchvision.anatomy import stride_of

        return stride_of(module)

    def calibration(
        self, module: nn.Module, batches: Sequence[Tensor], *, imgsz: ImageSize, classes: int, seed: int
    ) -> Calibration:
        """Return images, and the random projection of any network's outputs."""
        from yolo_prune.criteria.calibration import Calibration
        from yolo_prune.criteria.projection import output_projection

        return Calibration(batches, output_projection(seed), seed=seed)

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
        """Find the data that a model is measured on: images are always framed to the size of the input."""
        from yolo_prune.adapters.torchvision.tasks import open_task

        module: Any = getattr(loaded, "module", loaded)
        path = getattr(loaded, "path", "")
        if names_architecture(path):
            raise CheckpointError(
                f"'{path}' has random weights, and an untrained network has no accuracy to keep: give weights= with "
                f"its state dict, or train it with 'yolo-prune train model={path} data=...'."
            )
        return open_task(module, source, split=split, batch=batch, device=device)

    def read_export(self, metadata: Mapping[str, Any]) -> DeployedModel | None:
        """Return what the metadata of an exported file says, without torch; None where it is another host's."""
        from yolo_prune.adapters.torchvision.stated import read_export

        return read_export(metadata)

    def deployed_model(self, loaded: LoadedModel, imgsz: ImageSize) -> DeployedModel:
        """Return what a checkpoint puts out as it is deployed, at an input size in pixels."""
        from yolo_prune.adapters.torchvision.deploy import describe

        return describe(loaded.module, imgsz)

    def open_export(self, path: str | Path) -> ExportedFile | None:
        """Open an ONNX file of this host, None for another path."""
        if not is_export_of_ours(path):
            return None
        from yolo_prune.adapters.torchvision.exported import ExportedNetwork

        return ExportedNetwork(Path(path))

    def export(
        self,
        checkpoint: Path | str,
        out: Path | str,
        *,
        imgsz: ImageSize,
        batch: int = 1,
        trust: bool = False,
    ) -> Path:
        """Export a file of this host, with suppression inside."""
        from yolo_prune.adapters.torchvision.deploy import export_file

        return export_file(checkpoint, out, imgsz=imgsz, batch=batch)

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
        """Export a file of this host in 8 bits for ONNX Runtime, and return its accuracy."""
        from yolo_prune.adapters.torchvision.deploy import export_int8

        return export_int8(checkpoint, out, task, imgsz=imgsz, batches=batches)

    def check_training(self, train_args: Mapping[str, Any], *, of_cut_model: bool = False) -> None:
        """Refuse options that the training loop does not know or whose values it would not take."""
        from yolo_prune.adapters.torchvision.training.recipe import check_options

        check_options(train_args)

    def check_trainable(self, module: nn.Module, data: str) -> None:
        """Refuse detectors that learn from masks or key points where the data has none."""
        from yolo_prune.adapters.torchvision.training.setup import check_trainable

        check_trainable(module, data)

    def retrain(self, module: nn.Module, **options: Any) -> RetrainResult:
        """Train a cut network with the package's own loop."""
        from yolo_prune.adapters.torchvision.training.retrain import retrain

        return retrain(module, **options)

    def train(self, config: TrainConfig) -> list[str]:
        """Train a named network, and with a budget prune it on the way."""
        from yolo_prune.adapters.torchvision.training.train import train_from_config

        return train_from_config(config)

    def train_demo(
        self, data: Path, folder: Path, *, epochs: int, imgsz: int, device: str, seed: int
    ) -> Path:
        """Refuse: the demonstration is the first host's."""
        raise ConfigError("the demonstration trains a model of the first host: leave model= out.")

    def attach(self, model: Any, **options: Any) -> NoReturn:
        """Refuse: there is no trainer."""
        raise ConfigError(_NO_TRAINER)

    def inrun_trainer(self, base: type, settings: Any = None, **options: Any) -> NoReturn:
        """Refuse: there is no trainer."""
        raise ConfigError(_NO_TRAINER)


HOST: Host = TorchvisionHost()
