"""A skeleton of four keypoints, and the rig of a tube that has it."""

import pytest
import rig_files as rig

from wildshape.skeleton import load_skeleton


@pytest.fixture
def skeleton(tmp_path):
    (tmp_path / "tube.skeleton.yaml").write_text(rig.SKELETON)
    return load_skeleton(tmp_path / "tube.skeleton.yaml")


@pytest.fixture
def glb(tmp_path):
    return rig.write_glb(tmp_path / "tube.glb", *rig.gltf())
