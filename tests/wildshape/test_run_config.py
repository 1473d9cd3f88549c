"""Settings of `wildshape run` that cannot work are refused before anything is done."""

from dataclasses import replace
from pathlib import Path

import pytest

from wildshape.device import pick_device
from wildshape.errors import UserError
from wildshape.run import check_filter
from wildshape.run_config import Config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"selection_num": 0}, "--selection_num: expected at least 1; found 0"),
        ({"vis_num": 0}, "--vis_num: expected at least 1"),
        ({"num_cameras": 0}, "--num_cameras: expected at least 1"),
        ({"encoder_steps": -1}, "--encoder_steps: expected at least 0"),
        ({"score_threshold": 2.0}, "--score_threshold: expected 0 to 1; found 2.0"),
        ({"acsm_init": Path("nowhere.pt")}, "--acsm_init: expected a checkpoint; found no file nowhere.pt"),
        ({"rounds": 0}, "--rounds: expected at least 1"),
    ],
)
def test_settings_that_cannot_work(settings, message):
    with pytest.raises(UserError, match=message):
        Config(category="cow", **settings)


def test_a_criterion_that_is_none():
    config = Config(category="cow")
    check_filter(config)
    check_filter(replace(config, filter="CF-MT"))
    with pytest.raises(UserError, match="expected --filter among kpconf"):
        check_filter(replace(config, filter="cfcm3"))
    with pytest.raises(UserError, match="--filter cf_cm_zero123plus: expected --tokens"):
        check_filter(replace(config, filter="cf_cm_zero123plus"))
    check_filter(replace(config, filter="cf_cm_zero123plus", tokens="small"))


def test_a_device_that_is_none():
    assert pick_device("cpu").type == "cpu"
    with pytest.raises(UserError, match="--device: expected auto, cpu or cuda; found gpu"):
        pick_device("gpu")
