"""What a network of this host is, kept on the network itself: nothing else tells a module's file from its name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from yolo_prune.cut.record import PrunePlan
from yolo_prune.errors import CheckpointError
from yolo_prune.imgsz import ImageSize

_ATTRIBUTE = "described"
DETECT, CLASSIFY = "detect", "classify"


@dataclass(frozen=True)
class Described:
    """How a network was built, and what it tells apart.

    Attributes:
        architecture: Library and name, as in ``torchvision:resnet50``.
        task: ``detect`` or ``classify``.
        outputs: How many classes its builder was told, of detectors with the background.
        imgsz: Size of its input in pixels.
        names: Names of the classes; empty where nobody has said them yet.
        labels: What the network calls each of them: a classifier's index, a detector's label.
        plan: JSON of what was cut since it was built; None: nothing.
        example: Path of an image that a two-stage detector finds something in, for tracing.
    """

    architecture: str
    task: str
    outputs: int
    imgsz: ImageSize
    names: tuple[str, ...] = ()
    labels: tuple[int, ...] = ()
    plan: str | None = None
    example: str | None = None

    def cut_by(self, plan: PrunePlan | None) -> Described:
        """Return what it is after another cut."""
        if plan is None:
            return self
        whole = plan if self.plan is None else PrunePlan.from_json(self.plan).then(plan)
        return replace(self, plan=whole.to_json())

    @property
    def numbered(self) -> dict[int, str]:
        """Class index -> name; the label where no name is known."""
        named = self.names or tuple(f"class {label}" for label in self.every_label)
        return dict(enumerate(named))

    @property
    def every_label(self) -> tuple[int, ...]:
        """The labels, all that there can be where nobody has said which of them mean something."""
        return self.labels or tuple(range(int(self.task == DETECT), self.outputs))


def described(module: nn.Module) -> Described:
    """Return what a network is.

    Raises:
        CheckpointError: It did not come from this host.
    """
    found: Any = getattr(module, _ATTRIBUTE, None)
    if not isinstance(found, Described):
        raise CheckpointError(
            f"the {type(module).__name__} was not built by name: load it through yolo_prune, or use prune_module."
        )
    return found


def is_described(module: nn.Module) -> bool:
    """Tell whether a network came from this host."""
    return isinstance(getattr(module, _ATTRIBUTE, None), Described)


def describe_(module: nn.Module, what: Described) -> nn.Module:
    """Write on a network what it is, and return it."""
    module.__dict__[_ATTRIBUTE] = what
    return module
