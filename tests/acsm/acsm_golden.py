"""Outputs of the published animals3d code on seeded random inputs (tests/data/acsm)."""

import json
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

FOLDER = Path(__file__).parents[1] / "data" / "acsm"


def arrays(name):
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


def tensors(name):
    return {key: torch.from_numpy(value) for key, value in arrays(name).items()}


def template():
    facts = json.loads((FOLDER / "template.json").read_text())
    mesh = arrays("articulation")
    return SimpleNamespace(
        vertices=mesh["verts"],
        faces=np.zeros((0, 3), int),
        membership=mesh["membership"],
        part_names=tuple(facts["names"]),
        part_parents=np.array(facts["parent"]),
        part_centres=mesh["centres"],
        part_mirror=np.array(facts["part_mirror"]),
        keypoint_vertices=np.array(facts["keypoint_vertices"]),
        keypoint_flip=np.array(facts["keypoint_flip"]),
        active_parts=facts["active_parts"],
    )


def state_dict(cameras):
    """Parameters filled by name, as for the golden forwards."""
    shapes = json.loads((FOLDER / f"state_dict_shapes_cams{cameras}.json").read_text())
    return {name: _filled(name, shape) for name, shape in shapes.items()}


def _filled(name, shape):
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    v = np.random.default_rng([1, zlib.crc32(name.encode())]).standard_normal(shape)
    if name.endswith("running_var"):
        v = 0.1 * np.abs(v) + 0.9
    elif name.endswith("running_mean"):
        v = 0.01 * v
    elif len(shape) >= 2:
        v = 1.2 * v / np.sqrt(np.prod(shape[1:]))
    else:
        v = 1 + 0.05 * v if name.endswith("weight") else 0.05 * v
    return torch.tensor(v, dtype=torch.float32)
