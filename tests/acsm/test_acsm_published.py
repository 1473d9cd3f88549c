import pytest
import torch
from acsm_golden import state_dict, template, tensors

import acsm
from acsm import geometry
from wildshape.errors import UserError

KEYS = {
    "camera": "camera",
    "part_transforms": "part_transforms",
    "vertices": "verts",
    "keypoints_ndc": "keypoints_projected",
}


@pytest.mark.parametrize("cameras", [1, 8])
def test_forward_matches_the_published_model(cameras):
    golden = tensors(f"forward_cams{cameras}")
    model = acsm.load_published(state_dict(cameras), template(), num_cameras=cameras)
    result = model.predict(golden["image"])
    for ours, theirs in KEYS.items():
        torch.testing.assert_close(result[ours], golden[theirs][:2], atol=5e-5, rtol=0)
    torch.testing.assert_close(result["camera_prob"], golden["camera_prob"][:2, ..., 0], atol=1e-5, rtol=0)
    # The released flip overwrites the second half: mirrored cameras, parts with swapped sides.
    mirrored = geometry.mirror_camera(result["camera"])
    torch.testing.assert_close(mirrored, golden["camera"][2:], atol=5e-5, rtol=0)
    swapped = result["part_transforms"][:, :, model.part_mirror]
    torch.testing.assert_close(swapped, golden["part_transforms"][2:], atol=5e-5, rtol=0)
    vertices = model.articulate(swapped)
    torch.testing.assert_close(vertices, golden["verts"][2:], atol=5e-5, rtol=0)


def test_reads_files_and_names_what_does_not_fit(tmp_path):
    state = state_dict(1)
    path = tmp_path / "published.pth"
    torch.save({"model": {f"module.{k}": v for k, v in state.items()}}, path)
    model = acsm.load_published(path, template())
    assert model.arch.image_size == 64 and model.arch.order == "published"
    with pytest.raises(UserError, match="num_cameras=1"):
        acsm.load_published(path, template(), num_cameras=8)
    other = template()
    other.part_names = other.part_names[:-1]
    with pytest.raises(UserError, match="4 parts.*found 5"):
        acsm.load_published(path, other)
    with pytest.raises(UserError, match="no file"):
        acsm.load_published(tmp_path / "missing.pth", template())
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match="checkpoint of tensors"):
        acsm.load_published(path, template())
    with pytest.raises(UserError, match="published ACSM checkpoint"):
        acsm.load_published({"weight": torch.zeros(1)}, template())
