"""What only a GPU can show: mixed precision, channels last, memory that runs out, two processes, and its clock.

``scripts/gpu_check.sh`` runs these on a machine that has one; elsewhere each is skipped.
"""

import numpy as np
import pytest
import torch
from inrun_host import again, make, run, saved, stop_in
from test_midrun import cut_in_two_processes
from tiny_host import tiny
from ultralytics.engine import trainer as host_trainer

from yolo_prune.adapters.checkpoint import save_detector
from yolo_prune.adapters.ultralytics.anatomy import anatomy_of
from yolo_prune.adapters.ultralytics.evaluate import evaluate_detector
from yolo_prune.adapters.ultralytics.saliency import detection_projection
from yolo_prune.adapters.ultralytics.training.trainer import unwrap
from yolo_prune.bench import compare
from yolo_prune.cost import count_parameters
from yolo_prune.criteria.calibration import Calibration
from yolo_prune.criteria.moments import collect_moments
from yolo_prune.criteria.weights import SCORES
from yolo_prune.recover.fold import recalibrate_bn_

GPU = "cuda:0"
MIXED = {"device": 0, "amp": True, "workers": 0}
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
    pytest.mark.filterwarnings("default"),  # a GPU's libraries have warnings of their own
]


@pytest.fixture(autouse=True)
def _no_download(monkeypatch):
    """The host tries mixed precision out on a model that it would download."""
    monkeypatch.setattr(host_trainer, "check_amp", lambda _: True)


@pytest.fixture
def exact(monkeypatch):
    """Convolutions in 32 bits: 10 bits of mantissa are the default."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    file = tmp_path_factory.mktemp("model") / "tiny.pt"
    module = tiny()
    module.names = {0: "kind0", 1: "kind1"}
    return save_detector(file, module, task="detect", train_args={"imgsz": 64}, meta={})


def watch_layout(seen):
    """Note whether weights and momenta of the model that is trained lie channels last."""

    def look(trainer):
        weights = [weight for weight in unwrap(trainer.model).parameters() if weight.dim() == 4]
        momenta = [trainer.optimizer.state[weight]["momentum_buffer"] for weight in weights[:-1]]
        like = [torch.empty(tensor.shape, memory_format=torch.channels_last).stride() for tensor in weights]
        seen.append(
            (
                trainer.scaler.is_enabled(),
                [weight.stride() for weight in weights] == like,
                [momentum.stride() for momentum in momenta] == like[:-1],
                count_parameters(unwrap(trainer.model)),
            )
        )

    return look


def test_a_training_in_mixed_precision_is_cut_and_stays_channels_last(data, tmp_path):
    seen = []
    trainer = run(data, tmp_path, callbacks={"on_train_epoch_end": watch_layout(seen)}, **MIXED)
    assert [each[:3] for each in seen] == [(True, True, True)] * 4
    assert seen[0][3] > seen[-1][3] == trainer.state.cuts[0].params == count_parameters(saved(trainer.best))


@pytest.mark.parametrize("epoch", [1, 3])
def test_a_training_that_was_stopped_before_or_after_its_cut_goes_on(epoch, data, tmp_path):
    stopped = make(data, tmp_path / "first", callbacks={"on_train_batch_end": stop_in(epoch)}, **MIXED)
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    seen = []
    last = again(stopped.save_dir, tmp_path)
    trainer = run(data, tmp_path, resume=last, callbacks={"on_train_epoch_end": watch_layout(seen)}, **MIXED)
    assert [each[:3] for each in seen] == [(True, True, True)] * (4 - epoch)
    assert count_parameters(saved(trainer.best)) == trainer.state.cuts[0].params


def test_two_processes_share_a_gpu_and_the_plan(tmp_path):
    cut_in_two_processes(tmp_path, GPU)


def test_moments_statistics_and_scores_are_those_of_the_cpu(exact):
    batches = list(torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(0)).split(4))
    here, there = tiny().eval(), tiny().eval().to(GPU)
    graph = anatomy_of(here, 64).cost_of(here).graph
    expected, found = (
        collect_moments(module, graph, Calibration(batches, detection_projection(64, classes=2)))
        for module in (here, there)
    )
    assert expected.keys() == found.keys()
    for name, moments in expected.items():
        scale = np.abs(moments.second).max()
        np.testing.assert_allclose(found[name].second, moments.second, rtol=1e-2, atol=1e-3 * scale)
    for name, criterion in SCORES.items():
        np.testing.assert_allclose(criterion(there, graph, 0), criterion(here, graph, 0), err_msg=name)
    recalibrate_bn_(here, Calibration(batches)), recalibrate_bn_(there, Calibration(batches))
    statistics = there.state_dict()
    for name, value in here.state_dict().items():
        torch.testing.assert_close(statistics[name].cpu(), value, rtol=1e-3, atol=1e-4)


def test_memory_that_runs_out_halves_the_batch(caplog):
    module = tiny().eval().to(GPU)
    graph = anatomy_of(module, 64).cost_of(module).graph
    images = [torch.rand(64, 3, 256, 256)]
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    room = torch.cuda.memory_reserved(0) + 400e6  # 64 images take some 2 GB
    torch.cuda.set_per_process_memory_fraction(room / total, 0)
    try:
        moments = collect_moments(module, graph, Calibration(images, detection_projection(256, classes=2)))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, 0)
    assert "no memory for 64 images at a time" in caplog.text
    assert max(map(len, images)) < 64
    assert all(np.isfinite(each.second).all() for each in moments.values())


def test_accuracy_is_that_of_the_cpu(data, exact):
    module = tiny()
    module.names = {0: "kind0", 1: "kind1"}
    here, there = (evaluate_detector(module, data, imgsz=64, device=device) for device in ("cpu", GPU))
    assert there.coco.ap == pytest.approx(here.coco.ap, abs=0.01)


@pytest.mark.parametrize("half", [False, True])
def test_the_gpus_clock_measures_the_network_alone(half, checkpoint):
    models = {"a": checkpoint, "b": checkpoint}
    found = compare(models, runtime="torch", imgsz=64, device=0, half=half, rounds=6)
    assert found.not_measured is None
    for timing in found.timings.values():
        assert (timing.device, timing.device_name) == (GPU, torch.cuda.get_device_name(0))
        assert 0 < timing.net_ms < timing.latency_ms["p50"]
    assert found.ratios["b"]["net"].value == pytest.approx(1, abs=0.3), "the control: a model against itself"
