import numpy as np
import pytest
import torch
from pose_world import KEYPOINTS, SKELETON, make_world, picture, save

from pose.data import AUGMENTATIONS, Augmentation, PoseSamples
from pose.predict import normalise
from wildshape.crops import image_paths
from wildshape.errors import UserError
from wildshape.geometry import IMAGENET_MEAN, IMAGENET_STD
from wildshape.records import label_records
from wildshape.skeleton import load_skeleton


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


def tables(world):
    labels = world.load("labels")
    return labels, image_paths(world.load("labelled_images"), world)


def test_records_of_a_split_count_only_what_is_visible(world):
    labels, paths = tables(world)
    records = label_records(labels, paths, SKELETON, "val")
    rows = labels.take(labels["split"] == "val")
    assert len(records) == 4 and not records.skipped
    np.testing.assert_array_equal(records.counts, rows["visible"] == 2)
    np.testing.assert_array_equal(records.xy[records.counts], rows["xy"][records.counts])
    np.testing.assert_allclose(records.box_side, 90)


def test_twenty_keypoints_map_to_sixteen_by_name(world):
    labels, paths = tables(world)
    twenty = load_skeleton("quadruped20")
    xy = np.arange(len(labels) * 40, dtype=float).reshape(-1, 20, 2)
    wide = labels.with_columns(
        xy=xy,
        visible=np.full((len(labels), 20), 2),
        skeleton=np.array(["quadruped20"] * len(labels), object),
    )
    records = label_records(wide, paths, SKELETON, "test")
    assert records.xy.shape == (4, 16, 2) and records.counts.all()
    first = int(np.flatnonzero(labels["split"] == "test")[0])
    names = [twenty.keypoints.index(n) for n in ("left_eye", "tailbase", "right_back_paw")]
    ours = [SKELETON.keypoints.index(n) for n in ("L_eye", "Tail", "R_B_paw")]
    np.testing.assert_array_equal(records.xy[0, ours], xy[first, names])


def test_labels_of_a_foreign_skeleton_are_refused(world, tmp_path):
    labels, paths = tables(world)
    path = tmp_path / "bird.yaml"
    path.write_text("name: bird\nkeypoints: [" + ", ".join(f"wing{i}" for i in range(16)) + "]\n")
    foreign = labels.with_columns(skeleton=np.array([str(path)] * len(labels), object))
    with pytest.raises(UserError, match=r"L_eye.*found .*bird\.yaml.*wing0"):
        label_records(foreign, paths, SKELETON, "train")


def test_unusable_labels_are_named(world):
    labels, paths = tables(world)
    train = np.flatnonzero(labels["split"] == "train")
    boxes, visible = labels["box_xyxy"].copy(), labels["visible"].copy()
    boxes[train[0], 2] = boxes[train[0], 0]
    visible[train[1]] = 1
    paths = {k: v for k, v in paths.items() if k != labels["image_id"][train[2]]}
    bad = labels.with_columns(box_xyxy=boxes, visible=visible)
    records = label_records(bad, paths, SKELETON, "train")
    assert len(records) == 9
    reasons = dict(records.skipped)
    assert reasons[labels["instance_id"][train[0]]] == "a box of no area"
    assert reasons[labels["instance_id"][train[1]]] == "no keypoint to learn from"
    assert "no image file" in reasons[labels["instance_id"][train[2]]]


def test_an_unreadable_image_is_dropped_by_name(tmp_path):
    world = make_world(tmp_path, splits=(("train", 3),))
    (world.labelled_images_dir / "train1.png").write_bytes(b"\x89PNG broken")
    labels, paths = tables(world)
    samples = PoseSamples(label_records(labels, paths, SKELETON, "train"), 64, SKELETON.flip)
    ((name, reason),) = samples.drop_unreadable()
    assert len(samples) == 2 and name == labels["instance_id"][1] and "train1.png" in reason
    with pytest.raises(UserError, match=r"train1\.png"):
        PoseSamples(label_records(labels, paths, SKELETON, "train"), 64, SKELETON.flip).image(1)


def brightness_at(crop, xy):
    x, y = np.round(xy).astype(int)
    return crop[y, x].astype(int)


@pytest.mark.parametrize("augmentation", ["none", "published", "default"])
def test_keypoints_follow_the_pixels(augmentation, tmp_path):
    """A white dot at one keypoint lies where the sample says, mirrored or turned."""
    rng = np.random.default_rng(0)
    image, boxes, points = picture(rng)
    image[:] = 0
    image[39:42, 69:72] = 255
    points[0] = 30.0
    left = SKELETON.keypoints.index("L_F_paw")
    points[0, left] = 70.0, 40.0
    records = label_records(
        *_single(tmp_path, save(image, tmp_path / "dot.png"), boxes[0], points[0]), SKELETON, "train"
    )
    setting = AUGMENTATIONS[augmentation]
    samples = PoseSamples(records, 128, SKELETON.flip, setting)
    mirrored = 0
    for seed in range(12):
        sample = samples.sample(0, np.random.default_rng(seed))
        assert sample["crop"].shape == (128, 128, 3) and sample["crop"].dtype == np.uint8
        slots = [left, SKELETON.flip[left]]
        grey = sample["crop"].astype(float).sum(-1)
        y, x = np.nonzero(grey > 0.6 * grey.max())
        centre = np.array([x.mean(), y.mean()])
        distance = [np.linalg.norm(sample["xy_crop"][slot] - centre) for slot in slots]
        assert min(distance) < 0.4
        mirrored += int(distance[1] < distance[0])
    assert (mirrored > 0) == (setting.flip > 0)


def _single(tmp_path, path, box, points):
    from wildshape.tables import Table

    row = {
        "instance_id": "a0",
        "image_id": "i0",
        "category": "cow",
        "box_xyxy": box,
        "detector": "manual",
        "flags": "",
        "split": "train",
        "skeleton": SKELETON.name,
        "xy": points,
        "visible": np.full(KEYPOINTS, 2),
    }
    return Table.from_rows("labels", [row], num_keypoints=KEYPOINTS), {"i0": path}


def test_samples_depend_on_the_generator_only(world):
    labels, paths = tables(world)
    records = label_records(labels, paths, SKELETON, "train")
    samples = PoseSamples(records, 64, SKELETON.flip, AUGMENTATIONS["aux"])
    uncached = PoseSamples(records, 64, SKELETON.flip, AUGMENTATIONS["aux"], cache_bytes=0)
    a = samples.sample(3, np.random.default_rng(5))
    samples.sample(1, np.random.default_rng(6))
    b = uncached.sample(3, np.random.default_rng(5))
    assert all(np.array_equal(a[name], b[name]) for name in a)
    assert not np.array_equal(a["crop"], samples.sample(3, np.random.default_rng(7))["crop"])


def test_looks_leave_keypoints_alone(world):
    labels, paths = tables(world)
    records = label_records(labels, paths, SKELETON, "train")
    still = {"rotation_deg": 0.0, "scale": (1.0, 1.0), "flip": 0.0}
    plain = PoseSamples(records, 64, SKELETON.flip, Augmentation(**still, colour=0.0))
    wild = PoseSamples(records, 64, SKELETON.flip, Augmentation(**still, grey=1.0, erase=1.0))
    a, b = (s.sample(0, np.random.default_rng(1)) for s in (plain, wild))
    np.testing.assert_array_equal(a["xy_crop"], b["xy_crop"])
    assert not np.array_equal(a["crop"], b["crop"])


def test_normalise_is_imagenet():
    crops = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    expected = ((crops / 255 - IMAGENET_MEAN) / IMAGENET_STD).transpose(0, 3, 1, 2)
    found = normalise(torch.tensor(crops))
    assert found.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(found, expected, atol=1e-6)
