"""A report on modules that no host knows: cost, accuracy by the user's own measure, and speed of their exports."""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from yolo_prune.accuracy.task import Result
from yolo_prune.bench import Comparison, compare
from yolo_prune.bench.comparison import DEFAULT_SECONDS, check_threads
from yolo_prune.bench.parity import Reference
from yolo_prune.cost import count_macs, count_parameters
from yolo_prune.cut.record import PrunePlan
from yolo_prune.errors import BenchmarkError, ConfigError, YoloPruneError
from yolo_prune.files import replacing
from yolo_prune.graph.copies import copy_as
from yolo_prune.graph.modes import evaluating
from yolo_prune.graph.values import tensors_in
from yolo_prune.imgsz import read_size
from yolo_prune.progress import LOGGER
from yolo_prune.report import (
    METRICS,
    Conditions,
    PlanSummary,
    Resampled,
    Row,
    RunReport,
    make_row,
    write_report,
)
from yolo_prune.runs.measure.changes import scale_histogram
from yolo_prune.runs.measure.run import equivalence_of, versions
from yolo_prune.runs.measure.speed import Timed, model_rows, model_speedups, speed_conditions
from yolo_prune.runtimes.runtime import cpu_name
from yolo_prune.runtimes.tracing import trace_to_onnx

Accuracy = Callable[[nn.Module], "Mapping[str, float] | Result"]
_NAMES = ("parent", "pruned", "retrained")


def report_modules(
    models: Mapping[str, nn.Module],
    image: Tensor,
    out: Path | str,
    *,
    accuracy: Accuracy,
    plan: PrunePlan | None = None,
    data: str | None = None,
    bench: bool = True,
    threads: int | None = None,
    seconds: float = DEFAULT_SECONDS,
) -> RunReport:
    """Measure your own modules against each other and write the report: HTML, Markdown, CSV and JSON.

    Every module is exported to ``out/weights/NAME.onnx`` and timed with ONNX Runtime on the CPU, alternately: the
    network alone counts, its outputs as they are.

    Args:
        models: ``parent`` and ``pruned``, and ``retrained`` where there is one.
        image: What a module is called with, shape (1, channels, height, width), float32; MACs count at this size.
        out: Folder of the report, made when missing.
        accuracy: Called with each module in evaluation mode; returns accuracies in [0, 1] by their names in a report
            (``ap`` and ``ap50``, or ``top1`` and ``top5``, ...), or a
            :class:`yolo_prune.accuracy.task.Result`, from whose sample of images intervals are drawn.
        plan: What :func:`yolo_prune.prune_module` or a session returned: the proof and the budget are shown.
        data: What it was measured on, in words.
        bench: Measure speed.
        threads: CPU threads, all when None.
        seconds: Time for each module, without loading.

    Returns:
        The report; ``report.html`` lies in ``out``.

    Raises:
        ConfigError: The names are others, the image is no single image, or ``accuracy`` returns none that a report
            knows.
    """
    _check(models, image)
    check_threads(threads)
    out = Path(out)
    measured = [_measure(name, models[name], image, accuracy) for name in _NAMES if name in models]
    with tempfile.TemporaryDirectory(prefix="yolo-prune-") as folder:
        scratch = Path(folder)
        timed = [
            _exported(one.row, models[one.row.model], image, out, scratch) if bench else Timed(one.row, None)
            for one in measured
        ]
        comparisons = [_timings(timed, threads, seconds, scratch)] if bench else []
    result = measured[0].result
    facts = Conditions(data=data, machine=cpu_name(), **speed_conditions(comparisons))
    if result is not None:
        facts = replace(facts, images=result.images, boxes=result.boxes, evaluator=result.evaluator)
    report = RunReport(
        rows=tuple(model_rows(timed, comparisons)),
        name=out.name,
        model=type(models["parent"]).__name__,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        equivalence=equivalence_of(plan) if plan else None,
        versions=versions(()),
        conditions=facts,
        plan=_summary(plan, measured) if plan else None,
        bn_scales=scale_histogram(models["parent"], models["pruned"]),
        speedups=tuple(model_speedups(timed, comparisons)),
        resamples=tuple(one.resampled for one in measured if one.resampled),
        warnings=("Exports were timed on the CPU alone, as networks: what follows their outputs is yours.",),
    )
    LOGGER.info("report: %s", write_report(report, out))
    return report


@dataclass(frozen=True)
class _Measured:
    """A module's row without its speed, and what its accuracy is made of where that is known."""

    row: Row
    result: Result | None

    @property
    def resampled(self) -> Resampled | None:
        """The accuracy of its images drawn again and again."""
        if self.result is None or not self.result.sample:
            return None
        sample, row = self.result.sample, self.row
        return Resampled.from_sample(row.model, row.imgsz or 0, sample, row.precision)


def _check(models: Mapping[str, nn.Module], image: Tensor) -> None:
    if not {"parent", "pruned"} <= set(models) <= set(_NAMES):
        raise ConfigError(
            f"expected models of the names parent and pruned, and retrained where there is one; got "
            f"{', '.join(map(str, models)) or 'none'}."
        )
    if image.dim() != 4 or len(image) != 1:
        raise ConfigError(
            f"expected one image of shape (1, channels, height, width), got {tuple(image.shape)}."
        )


def _measure(name: str, module: nn.Module, image: Tensor, accuracy: Accuracy) -> _Measured:
    """Count and score one module."""
    with evaluating(module), torch.no_grad():
        found = accuracy(module)
        macs = count_macs(module, image)
    result = None if isinstance(found, Mapping) else found
    scores = found if isinstance(found, Mapping) else found.scores
    known = [key for key in METRICS if key in scores]
    if not known:
        raise ConfigError(
            f"accuracy= returned {', '.join(scores) or 'nothing'}: a report compares {', '.join(METRICS)}."
        )
    LOGGER.info("%s: %s", name, METRICS[known[0]].sentence(scores))
    row = make_row(
        name,
        imgsz=read_size(image.shape[-2:]),
        precision="float32",
        gmacs=macs / 1e9,
        params_m=count_parameters(module) / 1e6,
        size_mb=sum(tensor.nbytes for tensor in module.state_dict().values()) / 1e6,
        scores=scores,
    )
    return _Measured(row, result)


class _InOneRow(nn.Module):
    """All that a network returns as one row an image: what a runtime then does with it takes no time."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        found = [out for out in tensors_in(self.network(image)) if out.is_floating_point()]
        return torch.cat([out.reshape(image.shape[0], -1) for out in found], 1)


def _exported(row: Row, module: nn.Module, image: Tensor, out: Path, scratch: Path) -> Timed:
    """Export a module to ONNX, float32, or say in its row why there is no file; write what it must agree with."""
    file = out / "weights" / f"{row.model}.onnx"
    file.parent.mkdir(parents=True, exist_ok=True)
    network, pixels = _InOneRow(copy_as(module, torch.float32)).eval(), image.cpu().float()
    try:
        with replacing(file) as temporary:
            trace_to_onnx(network, pixels, temporary, what=row.model)
        with torch.inference_mode():
            output = network(pixels).numpy()
        Reference(pixels.numpy(), (output,), 0).save(scratch / f"{row.model}.npz")
    except (BenchmarkError, OSError) as error:
        LOGGER.warning("%s It was not timed.", error)
        return Timed(replace(row, not_measured=str(error)), None)
    return Timed(replace(row, size_mb=file.stat().st_size / 1e6), file)


def _timings(timed: Sequence[Timed], threads: int | None, seconds: float, scratch: Path) -> Comparison:
    """Time the exports alternately, the parent first, where they compute what their modules do."""
    files = {one.name: one.file for one in timed if one.file}
    sizes = {one.name: one.row.imgsz or 0 for one in timed}
    where = {"runtime": "onnxruntime", "device": "cpu", "threads": check_threads(threads)}
    try:
        if "parent" not in files:
            raise BenchmarkError("the parent has no export to compare with.")
        made = compare(
            *(files,),
            runtime="onnxruntime",
            imgsz={n: sizes[n] for n in files},
            threads=threads,
            seconds=seconds,
            references={n: scratch / f"{n}.npz" for n in files},
        )
    except YoloPruneError as error:
        LOGGER.warning("speed was not measured: %s", error)
        made = Comparison("parent", dict.fromkeys(sizes), {}, conditions={}, not_measured=str(error))
    return replace(made, conditions={**made.conditions, **where})


def _summary(plan: PrunePlan, measured: Sequence[_Measured]) -> PlanSummary:
    rows = {one.row.model: one.row for one in measured}
    return PlanSummary(
        budget=", ".join(f"{key}={value:g}" for key, value in plan.budget.items()),
        criterion=str(plan.settings.get("criterion", "")),
        parent_gmacs=rows["parent"].gmacs,
        kept_gmacs=rows["pruned"].gmacs,
        parent_params_m=rows["parent"].params_m,
        kept_params_m=rows["pruned"].params_m,
        round_to=plan.settings.get("round_to"),
        steps=plan.settings.get("steps"),
        imgsz=rows["parent"].imgsz,
    )
