"""What each command does with its options: call one stage and print what it found.

Stages are imported inside the functions, so that help and errors in the options need no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolo_prune import files
from yolo_prune.adapters.hosts import find_host, guarded, guarding_host
from yolo_prune.cli.output import say, write_json_answer
from yolo_prune.cli.tables import aligned_table
from yolo_prune.errors import CheckpointError, ConfigError, YoloPruneError
from yolo_prune.files import write_text
from yolo_prune.imgsz import ImageSize, plain_size, size_text
from yolo_prune.options import (
    BenchConfig,
    CheckConfig,
    CompletionConfig,
    DemoConfig,
    DoctorConfig,
    EvalConfig,
    ExportConfig,
    InspectConfig,
    PruneConfig,
    ReportConfig,
    SweepConfig,
    TrainConfig,
)
from yolo_prune.report.metric import METRICS
from yolo_prune.runtimes import is_exported

if TYPE_CHECKING:
    from yolo_prune.report.checks import CheckReport


def prune(config: PruneConfig) -> None:
    """Run the whole flow and print the table of the report and where everything is."""
    from yolo_prune.report import render_table
    from yolo_prune.runs.prune import prune_from_config

    result = prune_from_config(config)
    say(render_table(result.report))
    report = Path(result.folder) / "report.html"
    say(f"\nrun folder: {result.folder}\nreport: {report}\nbest: {result.best}")


def train(config: TrainConfig) -> None:
    """Train like the host; with a budget prune inside the training, and keep a pruned model pruned."""
    from yolo_prune.runs.training import train_from_config

    for line in train_from_config(config):
        say(line)


def sweep(config: SweepConfig) -> None:
    """Run many trials and print their table, the choice and where everything is."""
    from yolo_prune.runs.sweep import run_sweep
    from yolo_prune.runs.trials import render_sweep

    result = run_sweep(config)
    say(render_sweep(result))
    chosen = next((trial for trial in result.trials if trial.name == result.chosen), None)
    if chosen is not None:
        say(f"\nchosen: {chosen.name} ({chosen.best})")
    elif config.min_fps is not None or config.max_ap_drop is not None:
        say("\nno model meets the constraints")
    say(f"sweep folder: {result.folder}")


@guarding_host
def evaluate(config: EvalConfig) -> None:
    """Print AP of the task and of its boxes beside the host's own number; of a classifier top-1 and top-5.

    An exported file is evaluated as it is deployed: its runtime, its image size, its batch.
    """
    from yolo_prune.accuracy.bootstrap import RESAMPLES, interval_of, resampled_accuracy
    from yolo_prune.device import resolve_device
    from yolo_prune.report.intervals import METHOD, PERCENT

    if config.runtime is not None:
        _evaluate_deployed(config)
        return
    device = resolve_device(config.device)
    host = find_host(config.model)
    opened = host.open_export(config.model) or host.load(
        config.model, weights=config.weights, trust=config.trust
    )
    imgsz = config.imgsz or opened.imgsz
    task = host.open_task(
        opened,
        config.data,
        split=config.split,
        batch=config.batch,
        device=device,
        workers=config.workers,
        rect=config.rect,
    )
    result: Any = task.evaluate(getattr(opened, "module", opened), imgsz)
    of = METRICS[task.metric].of
    values = dict(result.scores)
    values |= {f"host {name}{of and f' of {of}'}": value for name, value in result.host_scores.items()}
    values |= {f"{task.metric} of {name}": value for name, value in result.per_class.items()}
    say(aligned_table([{"metric": name, "value": value} for name, value in values.items()]))
    boxes = "" if result.boxes is None else f"{result.boxes} boxes, "
    say(f"{result.images} images, {boxes}{size_text(imgsz)} px, split {config.split}; {result.evaluator}")
    bounds = interval_of(resampled_accuracy(result.sample))
    if bounds:
        source = f"{METHOD}, {RESAMPLES:,} resamples"
        say(f"{PERCENT} interval of {task.metric}: {bounds.low:.4f} to {bounds.high:.4f} ({source})")
    for note in result.notes:
        say(note)
    found = {"imgsz": plain_size(imgsz), "split": config.split, "ap_of": result.ap_of, "notes": result.notes}
    found |= {"low": bounds.low, "high": bounds.high} if bounds else {}
    samples = {each.name: None for each in fields(result) if each.name.endswith("sample")}
    found |= {key: value for key, value in asdict(replace(result, **samples)).items() if key not in samples}
    write_json_answer(config.json, found)


def _evaluate_deployed(config: EvalConfig) -> None:
    """Print what a model reaches as it is deployed on the runtime that was asked for."""
    from yolo_prune.accuracy.bootstrap import interval_of, resampled_accuracy
    from yolo_prune.report.intervals import PERCENT
    from yolo_prune.runs.evaluating import evaluate_on_runtime

    found = evaluate_on_runtime(config)
    one = found.accuracy
    bounds = None if one.sample is None else interval_of(resampled_accuracy(one.sample))
    between = f" ({PERCENT} interval {bounds.low:.4f} to {bounds.high:.4f})" if bounds else ""
    say(f"{one.metric} on {found.runtime}: {one.value:.4f}{between}")
    say(f"{one.images} images, {size_text(found.imgsz)} px, split {config.split}; {one.source}")
    if found.parity is not None:
        say(f"compared with the checkpoint in PyTorch: {found.parity.sentence}")
    for note in one.notes:
        say(note)
    values = {one.metric: one.value, "images": one.images, "imgsz": plain_size(found.imgsz)}
    values |= {"low": bounds.low, "high": bounds.high} if bounds else {}
    values |= {"difference": found.parity.relative} if found.parity else {}
    write_json_answer(config.json, {"runtime": found.runtime, **values, "notes": one.notes})


def bench(config: BenchConfig) -> None:
    """Print the timings of models against each other, a table for all runtimes; exported files need no host."""
    from yolo_prune.bench import compare
    from yolo_prune.bench.exports import shared_exports
    from yolo_prune.report.timings import markdown_table

    with guarded([model for model in config.model if not is_exported(model)], config):
        candidates = dict(zip(short_names(config.model), config.model, strict=True))
        sizes = {name: config.imgsz or _own_size(path, config.trust) for name, path in candidates.items()}
        with shared_exports() as exports:
            comparisons = [
                compare(
                    candidates,
                    runtime=runtime,
                    imgsz=sizes,
                    device=config.device,
                    threads=config.threads,
                    batch=config.batch,
                    rounds=config.rounds,
                    seconds=config.seconds,
                    half=config.half,
                    compile=config.compile,
                    trust=config.trust,
                    imports=config.imports,
                    exports=exports,
                )
                for runtime in config.runtimes
            ]
    say(markdown_table(comparisons))
    write_json_answer(config.json, [comparison.to_dict() for comparison in comparisons])


def check(config: CheckConfig) -> int:
    """Print whether a model reaches what it must, and return 0, or 1 where it does not or nobody can tell."""
    from yolo_prune.report.checks import CheckReport
    from yolo_prune.runs.check import run_check

    try:
        found = run_check(config)
    except (YoloPruneError, OSError) as error:
        _write_check(config, CheckReport(config.model, error=str(error)))
        raise
    verdicts = [
        {"requirement": one.requirement, "measured": one.measured, "verdict": one.sentence}
        for one in found.findings
    ]
    say(f"{found.title}\n\n{aligned_table(verdicts)}")
    width = max(map(len, found.details))
    say("\n".join(["", *(f"{name:<{width}}  {text}" for name, text in found.details.items())]))
    for warning in found.warnings:
        say(f"warning: {warning}")
    _write_check(config, found)
    return found.exit_code


def _write_check(config: CheckConfig, found: CheckReport) -> None:
    from yolo_prune.report.checks import check_junit, check_markdown

    write_json_answer(config.json, found.to_dict())
    for key, path, render in (("junit", config.junit, check_junit), ("md", config.md, check_markdown)):
        if path is not None:
            write_text(Path(path), render(found))
            say(f"{key}: {path}")


@guarding_host
def export(config: ExportConfig) -> None:
    """Write a file or folder and say how far it is from its checkpoint: in outputs, of INT8 in accuracy."""
    from yolo_prune.runs.exporting import export_float, export_int8, path_of_export
    from yolo_prune.runs.subject import size_mb

    loaded = find_host(config.model).load(config.model, trust=config.trust)
    imgsz = config.imgsz or loaded.imgsz
    out = path_of_export(config, loaded.path)
    if config.quantize:
        task, quantised = export_int8(config, loaded, out, imgsz)
        for name, result in (("checkpoint", task.evaluate(loaded.module, imgsz)), ("INT8", quantised)):
            say(f"{name}: {METRICS[task.metric].sentence(result.scores)} ({result.images} images)")
    else:
        parity = export_float(config, loaded, out, imgsz)
        say(f"compared with the checkpoint in PyTorch: {parity.sentence}")
    say(f"export: {out} ({size_mb(out):.1f} MB, {size_text(imgsz)} px)")


def _own_size(path: str, trust: bool) -> ImageSize:
    """Return the image size that a checkpoint was trained at, or that an exported file takes.

    Raises:
        CheckpointError: There is no such export.
        ConfigError: The file is an export of open size.
    """
    if is_exported(path):
        if not Path(path).exists():
            raise CheckpointError(f"there is no file '{path}'.")
        from yolo_prune.runtimes.runtime import read_file, runtime_for

        fixed = read_file(runtime_for(path), Path(path)).imgsz
        if fixed is not None:
            return fixed
    if Path(path).suffix != ".pt":
        raise ConfigError(f"'{path}' does not say its image size: give imgsz=.")
    return find_host(path).load(path, trust=trust).imgsz


@guarding_host
def inspect(config: InspectConfig) -> None:
    """Print or draw the groups of channels of a model, and the residual blocks that may go as a whole."""
    from yolo_prune.report.network import check_ending, widths_of, write_network
    from yolo_prune.runs.inspection import inspect_all

    if config.plot is not None:
        check_ending(config.plot)
    rows, blocks = inspect_all(
        config.model, config.imgsz, weights=config.weights, trust=config.trust, plan=config.plan
    )
    say(aligned_table(rows))
    frozen = sum(bool(row.get("frozen")) for row in rows)
    say(f"{len(rows)} groups, {frozen} of them frozen")
    if blocks:
        say(f"\n{aligned_table(blocks)}\n{len(blocks)} residual blocks that depth=true may drop")
    write_json_answer(config.json, rows)
    if config.plot is not None:
        planned = "" if config.plan is None else f", cut by {config.plan}"
        title = f"{config.model}{planned}"
        drawn = write_network(Path(config.plot), title, widths_of(rows), planned=config.plan is not None)
        say(f"plot: {drawn}")


def report(config: ReportConfig) -> None:
    """Write the report of a run folder again and print its table, or that of several runs beside each other."""
    from yolo_prune.report import rebuild_report, render_table, report_from_json, write_json

    if len(config.run) > 1 or config.html is not None:
        _compare_runs(config)
        return
    run = Path(config.run[0])
    if config.bench:
        from yolo_prune.runs.measure import measure_speed_again

        write_json(measure_speed_again(run), run)
    page = rebuild_report(run)
    say(render_table(report_from_json(run)))
    say(f"\nreport: {page}")


def _compare_runs(config: ReportConfig) -> None:
    from yolo_prune.report.compare import compare_runs, read_runs, render_comparison

    compared = compare_runs(*read_runs(config.run))
    say(render_comparison(compared))
    if config.html is not None:
        from yolo_prune.report.html import render_comparison_html

        write_text(Path(config.html), render_comparison_html(compared))
        say(f"\nhtml: {config.html}")


def doctor(config: DoctorConfig) -> int:
    """Print what is installed and whether it works; 0 where nothing is broken, 1 where something is."""
    from yolo_prune.runs.doctor import diagnose

    found = diagnose()
    say("\n".join(found.lines()))
    write_json_answer(config.json, found.to_dict())
    return 0 if found.healthy else 1


def completion(config: CompletionConfig) -> None:
    """Print the script of a shell."""
    from yolo_prune.cli.completion import completion_script

    say(completion_script(config.shell))


def demo(config: DemoConfig) -> None:
    """Run the demonstration and print its table."""
    from yolo_prune.report import render_table
    from yolo_prune.runs.demo import run_demo

    options = {key: value for key, value in asdict(config).items() if key != "debug"}
    result = run_demo(**options)
    say(render_table(result.report))
    say(f"\nreport: {Path(result.folder) / 'report.html'}")


def short_names(paths: Sequence[str]) -> list[str]:
    """Return the shortest name that tells each file from the others: its stem, or more of its path.

    Args:
        paths: Files, each one once.

    Raises:
        ConfigError: A file is listed twice.
    """
    for path in paths:
        if paths.count(path) > 1:
            raise ConfigError(f"'{path}' is listed twice: a comparison needs different files.")
    return files.short_names([Path(path).with_suffix("") for path in paths]) or list(paths)
