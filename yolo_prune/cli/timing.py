"""What the command ``latency`` does: a table of what layers take, or the files that a board measures it from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from yolo_prune.adapters.hosts import guarded
from yolo_prune.cli.output import say
from yolo_prune.imgsz import ImageSize, size_text
from yolo_prune.options import LatencyConfig
from yolo_prune.words import counted

if TYPE_CHECKING:
    from yolo_prune.bench.layers import LayerTimes


def latency(config: LatencyConfig) -> None:
    """Measure and print what layers take, or write them; of a folder of layers neither torch nor a host is needed."""
    from yolo_prune.bench.comparison import check_threads
    from yolo_prune.bench.layer_table import MANIFEST, time_folder, write_folder
    from yolo_prune.runtimes.runtime import Settings, parse_device

    settings = Settings(parse_device(config.device), check_threads(config.threads), 1, trust=config.trust)
    if (Path(config.model) / MANIFEST).is_file():
        _keep(config, *time_folder(Path(config.model), config.runtime, settings))
        return
    with guarded([config.model], config):
        from yolo_prune.runs.latency import open_model

        with open_model(config, settings) as (layers, probes, network):
            if config.layers is not None:
                folder = Path(config.layers)
                what = (folder, layers, network.file, network.imgsz, config.runtime, probes)
                count = write_folder(*what)
                say(f"layers: {folder} ({count} files for {config.runtime}, {size_text(network.imgsz)} px)")
                say(
                    f"on the board: yolo-prune latency model={folder.name} runtime={config.runtime} out=table.json"
                )
                return
            from yolo_prune.bench.layers import measure_layers

            times = measure_layers(layers, network, runtime=config.runtime, settings=settings, probes=probes)
            _keep(config, times, network.imgsz)
            if probes:
                from yolo_prune.cost.granularity import liked

                say(f"with round_to=auto, {liked(layers, times.ms, times.facts).text}")


def _keep(config: LatencyConfig, times: LayerTimes, imgsz: ImageSize) -> None:
    from yolo_prune.bench.layer_table import write_table

    facts = times.facts
    say(
        f"{facts['runtime']} {facts['runtime_version']}, {facts['device']} ({facts['device_name']}), "
        f"{counted(facts['threads'], 'thread')}, {size_text(imgsz)} px: {len(times.ms)} layers; the "
        f"network {times.network_ms:.2f} ms, before and after it {times.fixed_ms:.2f} ms"
    )
    say(f"table: {write_table(Path(str(config.out)), times, imgsz)}")
