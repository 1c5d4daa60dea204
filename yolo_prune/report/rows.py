"""What a run has to say, as frozen values that are report.json: every other report is made from these."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolo_prune.errors import ConfigError
from yolo_prune.files import write_text
from yolo_prune.imgsz import ImageSize
from yolo_prune.report.codec import decode, encode
from yolo_prune.report.deployed import Deployed
from yolo_prune.report.metric import METRICS
from yolo_prune.report.resampled import Resampled

if TYPE_CHECKING:
    from yolo_prune.bench import Timing

SCHEMA_VERSION = 1
"""Of report.json; it goes up when a key is renamed or removed, or means something else."""

ACCURACY = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "top1", "top5"),
    *("mask_ap", "mask_ap50", "keypoint_ap", "keypoint_ap50", "oriented_ap", "oriented_ap50"),
)
COST = ("gmacs", "params_m", "size_mb")
SPEED = ("latency_ms", "fps", "pre_ms", "net_ms", "post_ms", "runtime", "device", "threads", "batch")


@dataclass(frozen=True)
class Latency:
    """Percentiles of the time one batch takes from image to result, in milliseconds."""

    p10: float | None = None
    p50: float | None = None
    p90: float | None = None
    p99: float | None = None


@dataclass(frozen=True)
class Row:
    """One model on one runtime and device. None means "not measured", never zero.

    ``model`` is ``parent``, ``pruned``, ``retrained``, ``int8`` (the final one quantised) or ``control`` (the parent at
    fewer pixels). ``ap*`` are COCO AP of boxes, ``mask_ap*`` and ``keypoint_ap*`` of masks and key points,
    ``oriented_ap*`` the host's mAP of oriented boxes, ``top1`` and ``top5`` the accuracy of a classifier, in [0, 1],
    all of the model (``deployed``: of the file). ``gmacs``, ``params_m`` count 1e9 and 1e6; ``size_mb`` 1e6 bytes;
    ``fps`` is images per second at the median latency; ``pre_ms``, ``net_ms``, ``post_ms`` are its parts.
    """

    model: str
    gmacs: float | None = None
    params_m: float | None = None
    size_mb: float | None = None
    ap: float | None = None
    ap50: float | None = None
    ap75: float | None = None
    ap_small: float | None = None
    ap_medium: float | None = None
    ap_large: float | None = None
    top1: float | None = None
    top5: float | None = None
    mask_ap: float | None = None
    mask_ap50: float | None = None
    keypoint_ap: float | None = None
    keypoint_ap50: float | None = None
    oriented_ap: float | None = None
    oriented_ap50: float | None = None
    latency_ms: Latency | None = None
    fps: float | None = None
    pre_ms: float | None = None
    net_ms: float | None = None
    post_ms: float | None = None
    runtime: str | None = None
    device: str | None = None
    threads: int | None = None
    batch: int | None = None
    imgsz: ImageSize | None = None
    precision: str | None = None
    """It ran in ``float32``, ``float16`` or ``int8``; None in older reports."""
    not_measured: str | None = None
    """Why there are no times: what the benchmark or the export said."""
    deployed: Deployed | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "a report row") -> Row:
        """Build a row from a plain dict.

        Raises:
            ConfigError: An unknown key or a value of another type.
        """
        return decode(cls, values, where)

    def to_dict(self) -> dict[str, Any]:
        """Return the row as plain JSON values, every key present."""
        return dict(encode(self))

    @property
    def accuracy(self) -> float | None:
        """What models of this task are compared by: the first of ``METRICS`` that was measured."""
        return _compared_by(self)

    @property
    def p50_ms(self) -> float | None:
        """Median latency in milliseconds."""
        return self.latency_ms.p50 if self.latency_ms else None


def _compared_by(one: Row | StageAp) -> float | None:
    """Return the accuracy that models are compared by."""
    found: tuple[float | None, ...] = tuple(getattr(one, field) for field in METRICS)
    return next((value for value in found if value is not None), None)


@dataclass(frozen=True)
class Equivalence:
    """The proof of the cut: largest difference of zeroed and cut model, on outputs of ``scale``."""

    difference: float
    scale: float
    verdict: str
    """``exact`` when the cut model computes what the zeroed model computes, else what differed."""


@dataclass(frozen=True)
class StageAp:
    """Accuracy after one step of recovery: ``cut``, ``bn``, ``fold`` or ``retrained``; ``note``: on what."""

    name: str
    ap: float | None = None
    note: str | None = None
    top1: float | None = None
    mask_ap: float | None = None
    keypoint_ap: float | None = None
    oriented_ap: float | None = None

    @property
    def accuracy(self) -> float | None:
        """What models of this task are compared by: the first of ``METRICS`` that was measured."""
        return _compared_by(self)


@dataclass(frozen=True)
class LayerWidth:
    """Output channels of one layer in the parent and after the cut; ``frozen`` says why it was left alone."""

    name: str
    parent: int
    kept: int
    frozen: str | None = None


@dataclass(frozen=True)
class Histogram:
    """|BN scale| of all channels: one more of ``edges`` than of ``before`` (parent) or ``after``."""

    edges: tuple[float, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]


@dataclass(frozen=True)
class ClassAp:
    """What models are compared by, of one class, and how many boxes or images of it there are."""

    name: str
    parent: float | None = None
    pruned: float | None = None
    retrained: float | None = None
    boxes: int | None = None
    images: int | None = None


@dataclass(frozen=True)
class HostMap:
    """The host's own mAP (its matching and interpolation) of what the task is about: another number than COCO AP."""

    model: str
    map: float | None = None
    map50: float | None = None
    imgsz: ImageSize | None = None


@dataclass(frozen=True)
class Speedup:
    """FPS over the parent's, measured alternately, with the bounds of its 95 % bootstrap interval."""

    model: str
    ratio: float
    low: float | None = None
    high: float | None = None
    runtime: str | None = None
    device: str | None = None
    threads: int | None = None
    imgsz: ImageSize | None = None


@dataclass(frozen=True)
class PlanSummary:
    """What was asked for (``budget`` as typed, ``target`` of one of time: how it was met) and what the plan does."""

    budget: str
    criterion: str
    parent_gmacs: float | None = None
    kept_gmacs: float | None = None
    parent_params_m: float | None = None
    kept_params_m: float | None = None
    groups: int | None = None
    frozen_groups: int | None = None
    round_to: int | None = None
    steps: int | None = field(default=None, metadata={"was": "rounds"})
    imgsz: ImageSize | None = None
    target: str | None = None


@dataclass(frozen=True)
class Conditions:
    """What every number of the report was measured on."""

    timed: str | None = None
    """For example ``preprocess + network + postprocess``."""
    data: str | None = None
    split: str | None = None
    images: int | None = None
    boxes: int | None = None
    evaluator: str | None = None
    ap_of: str | None = None
    """Which boxes ``ap`` is of, where a model finds more than boxes: ``boxes`` or ``upright boxes``."""
    machine: str | None = None
    load1: float | None = None
    """Load average of the machine while timing: above the idle cores, other work ran at the same time."""
    samples: int | None = None


@dataclass(frozen=True)
class RunReport:
    """A whole run; ``to_json`` and ``report_from_json`` are inverse to each other."""

    rows: tuple[Row, ...] = ()
    schema_version: int = SCHEMA_VERSION
    name: str = "run"
    model: str | None = None
    created: str | None = None
    seed: int | None = None
    equivalence: Equivalence | None = None
    stages: tuple[StageAp, ...] = ()
    timing_s: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    conditions: Conditions = Conditions()
    plan: PlanSummary | None = None
    layers: tuple[LayerWidth, ...] = ()
    bn_scales: Histogram | None = None
    per_class: tuple[ClassAp, ...] = ()
    host_map: tuple[HostMap, ...] = ()
    speedups: tuple[Speedup, ...] = ()
    resamples: tuple[Resampled, ...] = ()
    """What the intervals of accuracies and of their differences are made from; older reports have none."""
    warnings: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "a report") -> RunReport:
        """Build a report from nested plain dicts and lists (rows may be plain dicts, or already ``Row``).

        Raises:
            ConfigError: An unknown key, a value of another type, or a newer schema.
        """
        version = values.get("schema_version", SCHEMA_VERSION) if isinstance(values, Mapping) else None
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise ConfigError(
                f"{where} has schema version {version}, this release reads up to {SCHEMA_VERSION}: "
                "upgrade yolo-prune."
            )
        return decode(cls, _without_retired(values) if isinstance(values, Mapping) else values, where)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return dict(encode(self))

    def to_json(self) -> str:
        """Return report.json's text."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _without_retired(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Drop keys that older releases wrote and nothing reads any more."""
    conditions = values.get("conditions")
    kept = {key: one for key, one in values.items() if key != "curve"}
    if isinstance(conditions, Mapping):
        kept["conditions"] = {key: one for key, one in conditions.items() if key != "ap_noise"}
    return kept


def report_from_json(path: Path | str) -> RunReport:
    """Read a report.json.

    Args:
        path: The file, or the run folder that holds it.

    Raises:
        ConfigError: The file is missing, is not JSON, or has other keys than this release knows.
    """
    file = Path(path) / "report.json" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise ConfigError(f"no report found at {file}: expected the report.json of a run folder.")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{file} is not valid JSON ({error}).") from error
    return RunReport.from_dict(values, str(file))


def write_json(report: RunReport, folder: Path | str) -> Path:
    """Write ``folder``/report.json, whole or not at all."""
    return write_text(Path(folder) / "report.json", report.to_json())


def make_row(
    model: str,
    *,
    imgsz: ImageSize | None = None,
    precision: str | None = None,
    gmacs: float | None = None,
    params_m: float | None = None,
    size_mb: float | None = None,
    scores: Mapping[str, float | None] | None = None,
) -> Row:
    """Put one model's measurements into a row; whatever is None stays "not measured".

    Args:
        model: As in :class:`Row`.
        imgsz: Input size in pixels.
        precision: As in :class:`Row`.
        gmacs: Multiply-accumulates of one image, in 1e9.
        params_m: Parameters, in 1e6.
        size_mb: Size of its file, in 1e6 bytes.
        scores: Accuracy by the names in ``ACCURACY``.
    """
    values: dict[str, Any] = {"model": model, "imgsz": imgsz, "precision": precision}
    values |= {"gmacs": gmacs, "params_m": params_m, "size_mb": size_mb}
    return Row.from_dict({**values, **(scores or {})})


def with_timing(row: Row, timing: Timing) -> Row:
    """Put the times that ``bench.compare`` returned into a row; its own input size stays where it has one."""
    values = {**row.to_dict(), **{key: getattr(timing, key) for key in SPEED}}
    known = {"imgsz": timing.imgsz if row.imgsz is None else row.imgsz, "not_measured": None}
    return Row.from_dict({**values, **known, "precision": timing.precision or row.precision})
