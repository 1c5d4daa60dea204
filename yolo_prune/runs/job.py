"""What travels through a run together: what was asked for, and the model, the data and the folder of the run."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from yolo_prune.accuracy.task import Task
from yolo_prune.adapters.host import Host
from yolo_prune.adapters.stored import LoadedModel
from yolo_prune.cost.granularity import Granularity
from yolo_prune.cut.proven import Traced
from yolo_prune.cut.widths import Widths
from yolo_prune.imgsz import ImageSize
from yolo_prune.options import PruneConfig
from yolo_prune.recover.effort import Effort
from yolo_prune.runs.latency import Place
from yolo_prune.runs.workspace import Workspace


@dataclass(frozen=True)
class PruneJob:
    """One run of ``prune``.

    Attributes:
        config: Its options.
        host: The framework that the model belongs to.
        loaded: The parent and what its file says of it.
        parent: The parent, traced once for the whole run.
        task: The data, and how models are scored on it.
        space: The run folder.
        device: Where it trains and evaluates.
        imgsz: Size of the input in pixels.
        widths: Which widths are allowed.
        place: Where models must be fast, None where nothing asks for that.
        effort: Images and steps of the cut.
        granularity: Which widths the runtime there likes, where that was asked.
    """

    config: PruneConfig
    host: Host
    loaded: LoadedModel
    parent: Traced
    task: Task
    space: Workspace
    device: str
    imgsz: ImageSize
    widths: Widths
    effort: Effort
    place: Place | None = None
    granularity: Granularity | None = None

    def with_parent(self, module: nn.Module) -> PruneJob:
        """Return the job with other weights in the same network as the parent."""
        return replace(
            self, loaded=replace(self.loaded, module=module), parent=replace(self.parent, module=module)
        )
