"""Training arguments are checked against the installed host."""

import pytest

from yolo_prune.adapters.ultralytics.keys import IDLE_KEYS, OWN_KEYS, TRAIN_KEYS
from yolo_prune.adapters.ultralytics.options import (
    check_pruned_training_args,
    check_pruning_options,
    check_retraining_args,
    check_train_args,
)
from yolo_prune.errors import ConfigError
from yolo_prune.options import TrainConfig

NEWER_THAN_8_4_0 = {"cls_pw", "channels_last"}


def test_every_key_that_rides_along_is_one_of_the_host():
    from ultralytics.utils import DEFAULT_CFG_DICT

    assert set(TRAIN_KEYS) - set(DEFAULT_CFG_DICT) <= NEWER_THAN_8_4_0


def test_good_arguments_pass():
    check_train_args({"optimizer": "adamw", "mosaic": 0.5, "cos_lr": True, "patience": 3, "cache": "ram"})


@pytest.mark.parametrize(
    ("train_args", "message"),
    [
        ({"mosaic": "many"}, "mosaic"),
        ({"mosaic": 7.0}, "mosaic"),
        ({"patience": 1.5}, "patience"),
        ({"cos_lr": "maybe"}, "cos_lr"),
        ({"lr0": 1000.0}, "lr0"),
        (
            {"optimizer": "AdamX"},
            r"^unknown optimizer 'AdamX'; the host has auto, SGD, .* Did you mean 'Adam'\?$",
        ),
        ({"mosaix": 1}, "'mosaix' is no training argument of the installed ultralytics"),
    ],
)
def test_a_value_the_host_would_not_take_is_refused_before_training(train_args, message):
    with pytest.raises(ConfigError, match=message):
        check_train_args(train_args)


@pytest.mark.parametrize(
    ("train_args", "message"),
    [
        ({"seed": 2**32}, "seed must be at most 4294967295, got 4294967296."),
        ({"workers": -1}, "workers must be at least 0, got -1."),
        ({"close_mosaic": -1}, "close_mosaic must be at least 0, got -1."),
        ({"batch": 0}, "batch must be at least 1, a share of the GPU's memory, or -1, got 0."),
        ({"source": "a.mp4"}, "'source' changes nothing in a training: leave it out."),
        ({"format": "onnx"}, "'format' changes nothing in a training: leave it out."),
        ({"device": "0,1"}, "device '0,1' is not there: torch sees 0 GPU(s). Use device=cpu."),
        ({"device": [0, 1]}, "device '0, 1' is not there: torch sees 0 GPU(s). Use device=cpu."),
    ],
)
def test_what_would_fail_late_or_change_nothing_is_refused_at_once(monkeypatch, train_args, message):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(ConfigError) as caught:
        check_train_args(train_args)
    assert str(caught.value) == message


def test_the_file_of_all_defaults_passes():
    from ultralytics.utils import DEFAULT_CFG_DICT

    check_train_args({key: value for key, value in DEFAULT_CFG_DICT.items() if key not in ("mode", "cfg")})


def test_keys_that_change_nothing_in_a_training_are_keys_of_the_host():
    assert set(IDLE_KEYS) <= set(OWN_KEYS)
    assert not set(IDLE_KEYS) & set(TRAIN_KEYS)


def test_a_run_that_prunes_needs_its_checkpoints():
    check_pruned_training_args({"save": True})
    with pytest.raises(ConfigError, match=r"^save=false leaves nothing to resume from"):
        check_pruned_training_args({"save": False})


@pytest.mark.parametrize(
    ("train_args", "message"),
    [
        ({"pretrained": "x.pt"}, "'pretrained' changes nothing when a cut model is trained: leave it out."),
        (
            {"single_cls": True},
            "single_cls=true changes the classes, which a cut model keeps: train its parent so.",
        ),
        ({"save": False}, "save=false leaves nothing to resume from or to choose the best of: leave it out."),
    ],
)
def test_what_a_cut_model_cannot_be_trained_with_is_refused(train_args, message):
    with pytest.raises(ConfigError) as caught:
        check_retraining_args(train_args)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("options", "pruned", "started_with", "message"),
    [
        (
            {"prune_at": 0.5, "keep_layers": "model.0"},
            False,
            None,
            "prune_at, keep_layers: for pruning in the training, and no budget is given: keep_macs=...",
        ),
        (
            {"teacher": "a.pt", "keep_macs": 0.5},
            False,
            None,
            "teacher= and recipe= are for a model that is already pruned, without a budget.",
        ),
        (
            {"recipe": "host"},
            False,
            None,
            "teacher= and recipe= are for a model that is already pruned, without a budget.",
        ),
        (
            {"keep_macs": 0.5, "cuts": 2},
            False,
            {"keep_macs": 0.6, "cuts": 2},
            "the run of 'm.pt' was started with keep_macs=0.6, not keep_macs=0.5. Leave that out to go on, or train "
            "anew.",
        ),
        ({"teacher": "a.pt", "recipe": "host", "threads": 2}, True, None, ""),
        ({"threads": 2}, False, None, ""),
        (
            {"keep_macs": 0.5, "keep_layers": "model.0"},
            False,
            {"keep_macs": 0.5, "keep_layers": ["model.0"]},
            "",
        ),
    ],
)
def test_options_of_a_training_that_would_be_passed_over_are_refused(options, pruned, started_with, message):
    config = TrainConfig(model="m.pt", **options)
    if not message:
        check_pruning_options(config, pruned=pruned, started_with=started_with)
        return
    with pytest.raises(ConfigError) as caught:
        check_pruning_options(config, pruned=pruned, started_with=started_with)
    assert str(caught.value) == message
