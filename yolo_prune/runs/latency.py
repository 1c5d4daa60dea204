"""A budget of time: what the layers of a run's model take on the runtime that counts, and how fast its models are."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from yolo_prune.adapters.host import Host
from yolo_prune.adapters.hosts import find_host
from yolo_prune.adapters.stored import LoadedModel
from yolo_prune.bench import compare
from yolo_prune.bench.comparison import check_threads
from yolo_prune.bench.exports import shared_exports
from yolo_prune.bench.layer_table import read_table
from yolo_prune.bench.layers import LayerTimes, Network, measure_layers
from yolo_prune.bench.machine import busy_with_others, load_average
from yolo_prune.cost import with_macs_at
from yolo_prune.cost.granularity import Granularity, liked, probes
from yolo_prune.cost.latency import Latency
from yolo_prune.cut.proven import Traced
from yolo_prune.cut.record import PrunePlan
from yolo_prune.errors import BenchmarkError
from yolo_prune.graph.groups import ChannelGraph
from yolo_prune.imgsz import ImageSize, plain_size, rounded_up
from yolo_prune.layers import LayerShape
from yolo_prune.options import LatencyConfig
from yolo_prune.options.places import Placed, runtime_of
from yolo_prune.progress import LOGGER
from yolo_prune.recover.aim import Timed
from yolo_prune.runtimes import RUNTIMES
from yolo_prune.runtimes.files import the_file_in
from yolo_prune.runtimes.runtime import Settings, available_cpus, parse_device
from yolo_prune.train.timing import Measure

SECONDS = 8.0
"""For which each of two models is timed, the parent and a cut one."""


@dataclass(frozen=True)
class Place:
    """Where models must be fast.

    Attributes:
        runtime: A key of ``RUNTIMES``.
        settings: Its device and threads.
        table: What was measured on another machine, in place of this one; None: this one.
        imports: Python files or modules that hold classes of checkpoints.
    """

    runtime: str
    settings: Settings
    table: Path | None = None
    imports: tuple[str, ...] = ()

    @staticmethod
    def of(options: Placed, threads: int | None, *, trust: bool, imports: Sequence[str] = ()) -> Place:
        """Return the place that options name."""
        settings = Settings(parse_device(options.target_device), check_threads(threads), 1, trust=trust)
        table = None if options.latency is None else Path(options.latency)
        return Place(runtime_of(options), settings, table, tuple(imports))

    @property
    def where(self) -> dict[str, Any]:
        """What a plan keeps of it."""
        if self.table is None:
            return {
                "runtime": self.runtime,
                "device": self.settings.device,
                "threads": self.settings.threads,
            }
        facts = json.loads(self.table.read_text(encoding="utf-8"))["facts"]
        known = {key: facts.get(key) for key in ("runtime", "device", "device_name", "threads")}
        return {**known, "table": str(self.table)}


@dataclass(frozen=True)
class Deployment:
    """How the models of a run are timed.

    Attributes:
        write: Writes one as it would be deployed, with what was cut of it since the run began.
        imgsz: Size of its input in pixels.
        images: Files that it runs on; None takes drawn images.
    """

    write: Callable[[nn.Module, Path, PrunePlan | None], Path]
    imgsz: ImageSize
    images: Sequence[Path] | None = None


@dataclass(frozen=True)
class Asked:
    """What a runtime said before anything is cut.

    Attributes:
        times: What was measured.
        latency: What layers take, where the budget is one of time.
        granularity: Which widths it likes, where that was asked.
    """

    times: LayerTimes
    latency: Latency | None = None
    granularity: Granularity | None = None


def ask_runtime(
    place: Place, deployment: Deployment, parent: Traced, *, target: bool, auto: bool
) -> tuple[Asked, Traced]:
    """Measure what layers take, and which widths are liked, before anything else is done.

    Args:
        place: Where.
        deployment: How models are written.
        parent: The model, traced.
        target: The budget is one of time.
        auto: The runtime chooses the step of widths.

    Returns:
        What it said, and the model with the times of its layers.
    """
    graph = graph_at(parent)
    layers, imgsz = layers_of(graph), deployment.imgsz
    wanted = probes(layers) if auto else []
    timed = layers if target else []
    if place.table is not None:
        times = read_table(place.table, timed, imgsz)
    else:
        _warn_when_busy(place.settings)
        with _as_deployed(deployment, parent.module, place.runtime, trust=place.settings.trust) as file:
            network = Network(file, imgsz, deployment.images, place.imports)
            times = measure_layers(
                timed, network, runtime=place.runtime, settings=place.settings, probes=wanted
            )
    granularity = liked(layers, times.ms, times.facts) if auto else None
    if granularity is not None:
        LOGGER.info("%s", granularity.text)
    if not target:
        return Asked(times, None, granularity), parent
    latency = _fitted(graph, times)
    parent = replace(
        parent,
        anatomy=replace(parent.anatomy, latency=latency),
        cost=replace(parent.cost, graph=graph, latency=latency),
    )
    return Asked(times, latency, granularity), parent


def _warn_when_busy(settings: Settings) -> None:
    """Say that what is measured now is worth little when other programs run beside it."""
    load1 = load_average() if settings.device == "cpu" else None
    if busy := busy_with_others(load1, available_cpus(), settings.threads):
        LOGGER.warning(
            "The machine is busy: %s. Other programs slow layers and phases down by different factors, also in CPU "
            "time: on a quiet machine the model may have another speed than the one that is met here.",
            busy,
        )


@contextmanager
def open_model(
    config: LatencyConfig, settings: Settings
) -> Iterator[tuple[list[LayerShape], list[LayerShape], Network]]:
    """Yield the layers of a checkpoint, what tells the widths that are liked, and the network as its runtime runs it.

    For ``yolo-prune latency``.
    """
    host = find_host(config.model)
    loaded = host.load(config.model, weights=config.weights, trust=config.trust)
    imgsz = config.imgsz or rounded_up(loaded.imgsz, host.stride(loaded.module))
    layers = layers_of(graph_at(Traced.of(loaded.module, host.anatomy(loaded.module, imgsz))))
    runtime, how = config.runtime, deployment_of(host, loaded, imgsz, None, trust=config.trust)
    with _as_deployed(how, loaded.module, runtime, trust=config.trust) as file:
        if config.layers is not None:  # they are written beside it, as one folder
            file = the_file_in(file, ".param")
        yield layers, probes(layers), Network(file, imgsz, None, config.imports)


def deployment_of(
    host: Host, loaded: LoadedModel, imgsz: ImageSize, images: Sequence[Path] | None, *, trust: bool
) -> Deployment:
    """Return how the models of a run are written by their host."""
    size = plain_size(imgsz)

    def write(module: nn.Module, file: Path, plan: PrunePlan | None) -> Path:
        return host.save(
            file,
            module,
            task=loaded.task,
            train_args={**loaded.train_args, "imgsz": size, "task": loaded.task},
            meta={"imgsz": size},
            trust=trust,
            plan=plan,
        )

    return Deployment(write, imgsz, images or None)


@contextmanager
def _as_deployed(deployment: Deployment, module: nn.Module, runtime: str, *, trust: bool) -> Iterator[Path]:
    """Yield a model as a file that its runtime runs."""
    with tempfile.TemporaryDirectory(prefix="yolo-prune-") as folder, shared_exports() as exports:
        file = deployment.write(module, Path(folder) / "parent.pt", None)
        if ending := RUNTIMES[runtime].exported:
            sizes = {"parent": deployment.imgsz}
            file = exports.of({"parent": file}, sizes, ending=ending, trust=trust)["parent"]
        yield file


def layers_of(graph: ChannelGraph) -> list[LayerShape]:
    """Return the layers of a model that can be timed alone, in order."""
    return [use.layer for use in graph.uses if use.layer is not None]


def graph_at(parent: Traced) -> ChannelGraph:
    """Return the channels of a model, its operations as they are at the size that costs are counted for."""
    how = parent.anatomy
    image = how.trace_input if how.cost_input is None else how.cost_input
    return with_macs_at(parent.cost.graph, parent.module, image, how.positions)


def _fitted(graph: ChannelGraph, times: LayerTimes) -> Latency:
    latency = Latency.fitted(times.ms, graph.uses, network_ms=times.network_ms, fixed_ms=times.fixed_ms)
    LOGGER.info(
        "%s takes %.2f ms an image, %.2f of them before and after the network; its layers alone %.2f",
        *(times.facts.get("runtime", "the runtime"), times.network_ms + times.fixed_ms, times.fixed_ms),
        times.network_ms - latency.rest_ms * sum(use.elements for use in graph.uses),
    )
    return latency


@contextmanager
def stopwatch(place: Place, deployment: Deployment, parent: Path, whole_ms: float) -> Iterator[Measure]:
    """Yield what times a cut model against the parent, in turns: what slows the machine hits both.

    All phases count, as in FPS. With one thread on a CPU their CPU time is compared, which other programs touch least.

    Args:
        place: Where.
        deployment: How models are written.
        parent: The parent's checkpoint.
        whole_ms: What the parent took when its layers were timed: times are brought to that.
    """
    settings = place.settings
    alone = (settings.device, settings.threads) == ("cpu", 1)
    with tempfile.TemporaryDirectory(prefix="yolo-prune-") as folder, shared_exports() as exports:
        count = 0

        def measure(module: nn.Module, plan: PrunePlan) -> Timed:
            nonlocal count
            count += 1
            found = compare(
                {"parent": parent, "cut": deployment.write(module, Path(folder) / f"cut{count}.pt", plan)},
                runtime=place.runtime,
                imgsz=deployment.imgsz,
                device=settings.device,
                threads=settings.threads,
                seconds=SECONDS,
                images=deployment.images,
                trust=settings.trust,
                imports=place.imports,
                exports=exports,
            )
            ratios = found.ratios.get("cut", {})
            ratio = ratios.get("cpu") if alone and "cpu" in ratios else ratios.get("latency")
            if ratio is None:
                why = "; ".join(found.refused.values()) or found.not_measured or "the clock is too coarse"
                raise BenchmarkError(f"the target cannot be measured: {why}.")
            return Timed(whole_ms / ratio.value, whole_ms / ratio.high, whole_ms / ratio.low)

        yield measure
