"""Converted checkpoints: what is said to change, and what is taken over."""

import acsm_toy
import pytest
import torch
from test_acsm_convert import config, world  # noqa: F401

from acsm import convert
from acsm.checkpoint_init import start_from
from acsm.model import ACSM, ACSMArchitecture
from acsm.predict import pack_template


def test_the_change_is_that_from_released_to_converted(world):  # noqa: F811
    facts = convert.run(config(world, labels="all", arm="change"), world)["measured"]
    gain = facts["change"]["camera"]["gain"]
    rows = facts["rows"]
    assert abs(gain) > 1e-6
    assert gain == pytest.approx(
        rows["converted"]["camera_error_deg"] - rows["released"]["camera_error_deg"], abs=1e-4
    )


def test_other_parts_start_anew(tmp_path):
    torch.manual_seed(0)
    template = acsm_toy.template()
    first, second = (ACSM(template, ACSMArchitecture(image_size=64)) for _ in range(2))
    packed = pack_template(template)
    packed["part_names"][-1] = "wing"
    own = second.part_head.output.weight.clone()
    state = {"model": first.state_dict(), "extra": {"template": packed, "arch": {"camera": "turntable"}}}
    torch.save(state, tmp_path / "other.pt")
    assert start_from(second, tmp_path / "other.pt", template).startswith("encoder, camera_head, trunk of")
    assert torch.equal(second.part_head.output.weight, own)
    assert torch.equal(second.trunk.first.weight, first.trunk.first.weight)
