"""Which device an option means, and a sentence when it is not there."""

import pytest
import torch

from yolo_prune.device import check_training_device, resolve_device
from yolo_prune.errors import ConfigError


@pytest.mark.parametrize(
    ("device", "gpus", "expected"),
    [
        (None, 0, "cpu"),
        (None, 2, "cuda:0"),
        ("", 0, "cpu"),
        ("cpu", 2, "cpu"),
        ("CPU", 0, "cpu"),
        ("cuda", 1, "cuda:0"),
        ("0", 1, "cuda:0"),
        ("1", 2, "cuda:1"),
        ("cuda:1", 2, "cuda:1"),
    ],
)
def test_a_device_is_named_in_torchs_notation(monkeypatch, device, gpus, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert resolve_device(device) == expected


@pytest.mark.parametrize(
    ("device", "sentence"),
    [
        ("0", "device '0' is not there: torch sees 0 GPU(s). Use device=cpu."),
        ("cuda:3", "device 'cuda:3' is not there: torch sees 0 GPU(s). Use device=cpu."),
        ("mps", "device 'mps' is not available in this build of torch. Use device=cpu."),
        ("0,1", "unknown device '0,1'. Use cpu, mps, or the number of one GPU."),
        ("tpu", "unknown device 'tpu'. Use cpu, mps, or the number of one GPU."),
    ],
)
def test_a_device_that_is_not_there_is_named(monkeypatch, device, sentence):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError) as caught:
        resolve_device(device)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    "device", [None, "", "cpu", "CPU", 0, "0", "0,1", [0, 1], "cuda:1", "cuda", -1, "-1"]
)
def test_devices_of_a_training_that_are_there_pass(monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_training_device(device)


@pytest.mark.parametrize(
    ("device", "sentence"),
    [
        ("0,1", "device '0,1' is not there: torch sees 1 GPU(s). Use device=cpu."),
        ([0, 1], "device '0, 1' is not there: torch sees 1 GPU(s). Use device=cpu."),
        (1, "device '1' is not there: torch sees 1 GPU(s). Use device=cpu."),
        ("cuda:3", "device 'cuda:3' is not there: torch sees 1 GPU(s). Use device=cpu."),
        ("-1,-1", "device '-1,-1' is not there: torch sees 1 GPU(s). Use device=cpu."),
        ("mps", "device 'mps' is not available in this build of torch. Use device=cpu."),
        ("npu:0", "device 'npu:0' is not there: this torch has no npu. Use device=cpu."),
        ("tpu", "unknown device 'tpu'. Use cpu, mps, or numbers of GPUs such as 0 or 0,1."),
    ],
)
def test_devices_of_a_training_that_are_not_there_are_named(monkeypatch, device, sentence):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError) as caught:
        check_training_device(device)
    assert str(caught.value) == sentence
