"""The pose network against the published one's outputs on seeded random weights.

tests/data/pose holds outputs of the published animals3d code; weights are filled by name.
"""

import json
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

import pose
from pose.model import PoseNet
from wildshape.errors import UserError
from wildshape.pretrained import load_imagenet_backbone

DATA = Path(__file__).parents[1] / "data" / "pose"


def filled_state(backbone):
    shapes = json.loads((DATA / f"{backbone}_state_dict_shapes.json").read_text())
    state = {}
    for name, shape in shapes.items():
        v = np.random.default_rng([1, zlib.crc32(name.encode())]).standard_normal(shape)
        if name.endswith("num_batches_tracked"):
            state[name] = torch.zeros(shape, dtype=torch.int64)
            continue
        if name.endswith("running_var"):
            v = 0.1 * np.abs(v) + 0.9
        elif name.endswith("running_mean"):
            v = 0.01 * v
        elif len(shape) >= 2:
            v = 1.2 * v / np.sqrt(np.prod(shape[1:]))
        else:
            v = 1 + 0.05 * v if name.endswith("weight") else 0.05 * v
        state[name] = torch.tensor(v, dtype=torch.float32)
    return state


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_load_published_reproduces_the_published_forward(backbone):
    model = pose.load_published(filled_state(backbone))
    golden = np.load(DATA / f"forward_{backbone}.npz")
    with torch.inference_mode():
        heatmaps = model(torch.tensor(golden["image"]))
    assert not model.training
    assert model.arch == {"num_keypoints": 16, "backbone": backbone, "head_channels": 256}
    np.testing.assert_allclose(heatmaps, golden["heatmaps"], atol=1e-4, rtol=1e-4)


def test_load_published_reads_files_and_wrappers(tmp_path):
    state = PoseNet(5, "resnet18", 32).state_dict()
    torch.save({"model": {f"module.{n}": v for n, v in state.items()}, "step": 3}, tmp_path / "a.pth")
    model = pose.load_published(tmp_path / "a.pth")
    assert model.arch == {"num_keypoints": 5, "backbone": "resnet18", "head_channels": 32}
    assert all(torch.equal(v, state[n]) for n, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("depth", "width"), [("resnet18", 64), ("resnet34", 256), ("resnet50", 64), ("resnet101", 256)]
)
def test_architecture_is_read_from_shapes(depth, width):
    with torch.device("meta"):
        state = PoseNet(7, depth, width).state_dict()
    from pose.model import arch_from_state

    assert arch_from_state(state) == {"num_keypoints": 7, "backbone": depth, "head_channels": width}


def test_load_published_refuses_other_things(tmp_path):
    with pytest.raises(UserError, match=r"found no file .*none\.pth"):
        pose.load_published(tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("not a checkpoint")
    with pytest.raises(UserError, match=r"expected a pose checkpoint of tensors at .*text\.pth"):
        pose.load_published(tmp_path / "text.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match="expected a pose checkpoint of tensors at .* found one list"):
        pose.load_published(tmp_path / "list.pth")
    with pytest.raises(UserError, match="found 1 parameters, such as fc.weight"):
        pose.load_published({"fc.weight": torch.zeros(2, 2)})
    state = PoseNet(5, "resnet18", 32).state_dict()
    state["backbone.0.weight"] = torch.zeros(1)
    with pytest.raises(UserError, match="does not fit"):
        pose.load_published(state)


def test_heatmaps_are_at_a_quarter():
    with torch.inference_mode():
        assert PoseNet(4, "resnet18", 16).eval()(torch.zeros(2, 3, 64, 96)).shape == (2, 4, 16, 24)
    with pytest.raises(UserError, match="resnet9"):
        PoseNet(4, "resnet9")


def test_imagenet_weights_come_from_the_cache_or_not_at_all(tmp_path, monkeypatch):
    from torchvision.models import resnet18

    def no_network(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    model = PoseNet(3, "resnet18", 16)
    before = model.backbone[0].weight.clone()
    assert load_imagenet_backbone(model.backbone, "resnet18") is False
    assert torch.equal(model.backbone[0].weight, before)

    donor = resnet18().state_dict()
    donor = {n: v for n, v in donor.items() if not n.endswith("num_batches_tracked")}
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *a, **k: donor)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "resnet18-f37072fd.pth").touch()
    assert load_imagenet_backbone(model.backbone, "resnet18") is True
    assert torch.equal(model.backbone[0].weight, donor["conv1.weight"])
    assert torch.equal(model.backbone[7][1].bn2.bias, donor["layer4.1.bn2.bias"])


def test_importing_pose_is_light():
    code = "import sys, pose; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
