"""A budget of time: what the layers of a run's model take on the runtime that counts, and how fast its models are."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
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
from yolo_prune.cost import with_macs_at
from yolo_prune.cost.latency import Latency
from yolo_prune.cut.proven import Traced
from yolo_prune.cut.record import PrunePlan
from yolo_prune.errors import BenchmarkError
from yolo_prune.graph.groups import ChannelGraph
from yolo_prune.imgsz import ImageSize, plain_size, rounded_up
from yolo_prune.layers import LayerShape
from yolo_prune.options import LatencyConfig, PruneConfig
from yolo_prune.progress import LOGGER
from yolo_prune.recover.aim import Timed
from yolo_prune.recover.steps import CutResult
from yolo_prune.runs.job import PruneJob
from yolo_prune.runs.measure.speed import BENCH_IMAGES
from yolo_prune.runs.preflight import budget_of, runtime_of
from yolo_prune.runtimes import RUNTIMES
from yolo_prune.runtimes.ncnn import convert
from yolo_prune.runtimes.runtime import Settings, parse_device

SECONDS = 8.0
"""For which each of two models is timed, the parent and a cut one."""


def with_times(
    config: PruneConfig,
    host: Host,
    loaded: LoadedModel,
    parent: Traced,
    imgsz: ImageSize,
    images: list[Path],
) -> Traced:
    """Return a run's model with the times of its layers, measured on its runtime before anything else is done.

    Args:
        config: The options, with a target.
        host: The framework that the model belongs to.
        loaded: The model and what its file says of it.
        parent: The model, traced.
        imgsz: Size of its input in pixels.
        images: Files that the network runs on.
    """
    graph = graph_at(parent)
    layers = layers_of(graph)
    if config.latency is not None:
        return timed_by(parent, graph, read_table(Path(config.latency), layers, imgsz))
    runtime, settings = runtime_of(config), _settings(config)
    with deployed_network(host, loaded, parent.module, imgsz, runtime, trust=config.trust) as file:
        network = Network(file, imgsz, images or None, config.imports)
        times = measure_layers(layers, network, runtime=runtime, settings=settings)
    return timed_by(parent, graph, times)


@contextmanager
def open_model(config: LatencyConfig, settings: Settings) -> Iterator[tuple[list[LayerShape], Network]]:
    """Yield the layers of a checkpoint and the network as its runtime runs it, for ``yolo-prune latency``."""
    host = find_host(config.model)
    loaded = host.load(config.model, weights=config.weights, trust=config.trust)
    imgsz = config.imgsz or rounded_up(loaded.imgsz, host.stride(loaded.module))
    layers = layers_of(graph_at(Traced.of(loaded.module, host.anatomy(loaded.module, imgsz))))
    runtime = config.runtime
    with deployed_network(host, loaded, loaded.module, imgsz, runtime, trust=config.trust) as file:
        if config.layers is not None and runtime == "ncnn":
            file = convert(file, imgsz, file.parent / "ncnn")
        yield layers, Network(file, imgsz, None, config.imports)


@contextmanager
def deployed_network(
    host: Host, loaded: LoadedModel, module: nn.Module, imgsz: ImageSize, runtime: str, *, trust: bool
) -> Iterator[Path]:
    """Yield a model as a file that its runtime runs."""
    with tempfile.TemporaryDirectory(prefix="yolo-prune-") as folder, shared_exports() as exports:
        file = _saved(host, loaded, imgsz, module, Path(folder) / "parent.pt", trust=trust)
        if ending := RUNTIMES[runtime].exported:
            file = exports.of({"parent": file}, {"parent": imgsz}, ending=ending, trust=trust)["parent"]
        yield file


def layers_of(graph: ChannelGraph) -> list[LayerShape]:
    """Return the layers of a model that can be timed alone, in order."""
    return [use.layer for use in graph.uses if use.layer is not None]


def graph_at(parent: Traced) -> ChannelGraph:
    """Return the channels of a model, its operations as they are at the size that costs are counted for."""
    how = parent.anatomy
    image = how.trace_input if how.cost_input is None else how.cost_input
    return with_macs_at(parent.cost.graph, parent.module, image, how.positions)


def timed_by(parent: Traced, graph: ChannelGraph, times: LayerTimes) -> Traced:
    """Return a model whose layers have these times."""
    latency = Latency.fitted(times.ms, graph.uses, network_ms=times.network_ms, fixed_ms=times.fixed_ms)
    LOGGER.info(
        "%s takes %.2f ms an image, %.2f of them before and after the network; its layers alone %.2f",
        *(times.facts.get("runtime", "the runtime"), times.network_ms + times.fixed_ms, times.fixed_ms),
        times.network_ms - latency.rest_ms * sum(use.elements for use in graph.uses),
    )
    return replace(
        parent,
        anatomy=replace(parent.anatomy, latency=latency),
        cost=replace(parent.cost, graph=graph, latency=latency),
    )


@contextmanager
def stopwatch(job: PruneJob, whole_ms: float) -> Iterator[Callable[[nn.Module, PrunePlan], Timed]]:
    """Yield what times a cut model against the parent, in turns: what slows the machine hits both.

    All phases count, as in FPS. With one thread on a CPU their CPU time is compared, which other programs hardly touch.

    Args:
        job: The run; its parent is written.
        whole_ms: What the parent took when its layers were timed: times are brought to that.
    """
    config = job.config
    parent = job.space.weights / "parent.pt"
    images = job.task.image_files(BENCH_IMAGES)
    alone = (parse_device(config.target_device), check_threads(config.threads)) == ("cpu", 1)
    with tempfile.TemporaryDirectory(prefix="yolo-prune-") as folder, shared_exports() as exports:
        count = 0

        def measure(module: nn.Module, plan: PrunePlan) -> Timed:
            nonlocal count
            count += 1
            file = Path(folder) / f"cut{count}.pt"
            _saved(job.host, job.loaded, job.imgsz, module, file, plan, trust=config.trust)
            found = compare(
                {"parent": parent, "cut": file},
                runtime=runtime_of(config),
                imgsz=job.imgsz,
                device=config.target_device,
                threads=config.threads,
                seconds=SECONDS,
                images=images or None,
                trust=config.trust,
                imports=config.imports,
                exports=exports,
            )
            ratios = found.ratios.get("cut", {})
            ratio = ratios.get("cpu") if alone and "cpu" in ratios else ratios.get("latency")
            if ratio is None:
                raise BenchmarkError(
                    f"the target cannot be measured: {found.not_measured or 'the clock is too coarse'}."
                )
            return Timed(whole_ms / ratio.value, whole_ms / ratio.high, whole_ms / ratio.low)

        yield measure


def record_of(config: PruneConfig, parent: Traced, cut: CutResult) -> dict[str, Any]:
    """Return what a plan keeps of a target: where it was met and how closely; of a table, what was predicted."""
    if cut.reached is not None:
        where = {
            "runtime": runtime_of(config),
            "device": parse_device(config.target_device),
            "threads": check_threads(config.threads),
        }
        return {**where, **cut.reached.to_dict(), "speedup": cut.reached.speedup}
    budget = budget_of(config)
    whole = parent.amount(budget)
    predicted = whole * cut.steps[-1].kept if cut.steps else whole
    table = json.loads(Path(str(config.latency)).read_text(encoding="utf-8"))
    return {
        **{key: table["facts"].get(key) for key in ("runtime", "device", "device_name", "threads")},
        **{"target_ms": budget.limit(parent.cost), "parent_ms": whole, "predicted_ms": predicted},
        **{"table": str(config.latency), "measured": None, "speedup": None},
    }


def _settings(config: PruneConfig) -> Settings:
    return Settings(parse_device(config.target_device), check_threads(config.threads), 1, trust=config.trust)


def _saved(
    host: Host,
    loaded: LoadedModel,
    imgsz: ImageSize,
    module: nn.Module,
    file: Path,
    plan: PrunePlan | None = None,
    *,
    trust: bool,
) -> Path:
    """Write a model as it would be deployed, to be timed."""
    size = plain_size(imgsz)
    return host.save(
        file,
        module,
        task=loaded.task,
        train_args={**loaded.train_args, "imgsz": size, "task": loaded.task},
        meta={"imgsz": size},
        trust=trust,
        plan=plan,
    )
