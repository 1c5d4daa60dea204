"""Training arguments are checked against the installed host."""

import pytest

from yolo_prune.adapters.ultralytics.options import check_train_args
from yolo_prune.config.host_keys import HOST_TRAIN_KEYS
from yolo_prune.errors import ConfigError

NEWER_THAN_8_4_0 = {"cls_pw", "channels_last"}


def test_every_key_that_rides_along_is_one_of_the_host():
    from ultralytics.utils import DEFAULT_CFG_DICT

    assert set(HOST_TRAIN_KEYS) - set(DEFAULT_CFG_DICT) <= NEWER_THAN_8_4_0


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
