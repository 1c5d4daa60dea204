"""Where the trials of a sweep run: in this process, one after the other, or side by side on a Ray cluster."""

from __future__ import annotations

import importlib
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yolo_prune
from yolo_prune.errors import ConfigError, MissingRuntimeError, one_line
from yolo_prune.options import PruneConfig
from yolo_prune.progress import LOGGER

RunTrial = Callable[[PruneConfig], str]
"""Runs one trial, and returns why it failed, or nothing."""
ENGINES = ("process", "ray")

_LIVES = 3  # how often a trial is begun whose worker dies: a node may vanish, but a trial that kills it kills it again
_SHARED_FILES = ("model", "data", "weights")


@dataclass(frozen=True)
class Room:
    """What one trial gets of a cluster.

    Attributes:
        cpus: Logical CPUs.
        gpus: GPUs; None: one where the trials run on a GPU, else none.
    """

    cpus: int = 1
    gpus: float | None = None


def run_here(trials: Sequence[PruneConfig], run: RunTrial) -> list[str]:
    """Run trials one after the other in this process; return of each why it failed, or nothing."""
    return [run(trial) for trial in trials]


def run_on_ray(trials: Sequence[PruneConfig], run: RunTrial, room: Room) -> list[str]:
    """Run trials on the Ray cluster that ``RAY_ADDRESS`` names, or on this machine, as many at once as have room.

    A trial whose worker dies is begun again, twice at most, and goes on from what its folder holds. Any other error
    ends that trial alone.

    Args:
        trials: Options of each; their files and their ``project`` lie where every node sees them under the same path.
        run: Runs one.
        room: What each gets of the cluster.

    Returns:
        Of each why it failed, or nothing.

    Raises:
        MissingRuntimeError: Ray is not installed.
        ConfigError: The cluster has never as much room as one trial needs, or a device cannot be given to trials.
    """
    ray = _import_ray()
    shipped = [_for_nodes(trial) for trial in trials]
    own = not ray.is_initialized()
    if own:
        ray.init(log_to_driver=True)
    try:
        gpus = _gpus_of(ray, shipped, room)
        _check_room(ray, room.cpus, gpus)
        remote = ray.remote(num_cpus=room.cpus, num_gpus=gpus, max_retries=0)(_on_node)
        return _gather(ray, shipped, lambda trial: remote.remote(run, trial, yolo_prune.__version__))
    finally:
        if own:
            ray.shutdown()


def _import_ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise MissingRuntimeError('engine=ray needs Ray: pip install "yolo-prune[ray]".') from error


def _for_nodes(trial: PruneConfig) -> PruneConfig:
    """Name the files of a trial by absolute paths: a worker's working directory is another one."""
    paths = {key: getattr(trial, key) for key in _SHARED_FILES}
    found: dict[str, Any] = {
        key: str(Path(path).resolve()) for key, path in paths.items() if path and Path(path).exists()
    }
    imports = tuple(str(Path(name).resolve()) if Path(name).exists() else name for name in trial.imports)
    return replace(trial, **found, imports=imports, project=str(Path(trial.project).resolve()))


def _gpus_of(ray: Any, trials: Sequence[PruneConfig], room: Room) -> float:
    """Return how many GPUs a trial gets.

    Raises:
        ConfigError: The trials ask for a certain GPU, but Ray shows each worker its own as the first.
    """
    device = (trials[0].device or "").strip().lower()
    if device not in ("", "cpu", "cuda", "cuda:0", "0"):
        raise ConfigError(
            f"engine=ray gives each trial a GPU of its own, so that there is no device={device}. Leave device= out, "
            "or give device=cpu or device=cuda."
        )
    if room.gpus is not None:
        return room.gpus
    wanted = device not in ("", "cpu") or (not device and ray.cluster_resources().get("GPU", 0) >= 1)
    return 1.0 if wanted else 0.0


def _check_room(ray: Any, cpus: int, gpus: float) -> None:
    """Raise ConfigError where no node could ever run a trial: Ray would wait for one without end."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
        return
    there = "; ".join(f"{node.get('CPU', 0):g} CPUs, {node.get('GPU', 0):g} GPUs" for node in nodes)
    raise ConfigError(
        f"a trial needs {cpus} CPUs and {gpus:g} GPUs, and no node of the cluster has as much ({there}). Give "
        "trial_cpus= and trial_gpus=."
    )


def _on_node(run: RunTrial, trial: PruneConfig, version: str) -> str:
    """Run a trial on a worker, after looking that it can see what the driver sees."""
    node = platform.node()
    if yolo_prune.__version__ != version:
        return (
            f"node {node} has yolo-prune {yolo_prune.__version__}, and the sweep was started with {version}."
        )
    if not Path(trial.project).is_dir():
        return (
            f"node {node} has no folder '{trial.project}'. Give project= a folder that every node of the cluster sees "
            "under the same path."
        )
    return run(trial)


def _gather(ray: Any, trials: Sequence[PruneConfig], start: Callable[[PruneConfig], Any]) -> list[str]:
    """Run all trials, begin again what lost its worker, and log each that is done."""
    outcomes = [""] * len(trials)
    lives = [_LIVES] * len(trials)
    pending = {start(trial): index for index, trial in enumerate(trials)}
    try:
        while pending:
            (handle, *_), _ = ray.wait(list(pending), num_returns=1)
            index = pending.pop(handle)
            name = trials[index].name
            try:
                outcomes[index] = ray.get(handle)
            except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError) as error:
                lives[index] -= 1
                if lives[index]:
                    LOGGER.warning("%s lost its worker and is begun again", name)
                    pending[start(_going_on(trials[index]))] = index
                    continue
                outcomes[index] = f"its worker died {_LIVES} times, the last time so: {one_line(error)}."
            except ray.exceptions.RayError as error:
                outcomes[index] = _why(getattr(error, "cause", None) or error)
            done = len(trials) - len(pending)
            LOGGER.info("%d of %d trials: %s %s", done, len(trials), name, outcomes[index] or "is done")
    except KeyboardInterrupt:
        for handle in pending:
            ray.cancel(handle, force=True)
        raise
    return outcomes


def _going_on(trial: PruneConfig) -> PruneConfig:
    """Return the options with which a trial goes on from what it left, where it left something."""
    folder = Path(trial.project, trial.name or "")
    left = folder.is_dir() and any(path.is_file() for path in folder.rglob("*"))
    return replace(trial, resume=left, exist_ok=True)


def _why(error: BaseException) -> str:
    return f"{type(error).__name__}: {one_line(error)}."
