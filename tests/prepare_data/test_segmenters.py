"""Segmenters: Mask R-CNN on random weights, SAM and SAM 2 made from configurations, the simulated one."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from mask_world import picture, write_world

from prepare_data.make_diorama import Config as DioramaConfig
from prepare_data.make_diorama import run as make_diorama
from prepare_data.save_masks import Config, run
from prepare_data.segmenters import find_segmenter, segment, torchvision_models
from prepare_data.segmenters.torchvision_models import MaskRCNNSegmenter
from wildshape.errors import UserError
from wildshape.formats.masks import decode_mask
from wildshape.stage import Provenance, publish
from wildshape.tables import SCHEMAS, Table

BOXES = [np.array([[8, 12, 40, 44], [4, 4, 20, 12]], np.float32), np.array([[0, 0, 50, 80]], np.float32)]


def pictures():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, shape, dtype=np.uint8) for shape in ((48, 64, 3), (80, 50, 3))]


# Mask R-CNN


class Found(torch.nn.Module):
    """A stand-in for a Mask R-CNN: always the same instances, each mask filling its box."""

    def __init__(self, boxes, scores, labels) -> None:
        super().__init__()
        self.found = (
            torch.tensor(boxes).float().reshape(-1, 4),
            torch.tensor(scores),
            torch.tensor(labels),
        )

    def forward(self, images):
        boxes, scores, labels = self.found
        results, self.sizes = [], [tuple(image.shape[1:]) for image in images]
        for image in images:
            assert image.dtype == torch.float32 and image.shape[0] == 3 and float(image.max()) <= 1
            masks = torch.zeros(len(boxes), 1, *image.shape[1:])
            for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist()):
                mask[0, y0:y1, x0:x1] = 0.9
            results.append({"boxes": boxes, "scores": scores, "labels": labels, "masks": masks})
        return results


def mask_rcnn(boxes, scores, labels):
    return MaskRCNNSegmenter(
        Found(boxes, scores, labels), ["-", "cow", "dog"], {"cow"}, torch.device("cpu")
    )


def test_the_instance_at_the_box_is_taken():
    found = mask_rcnn([[8, 12, 40, 40], [0, 0, 64, 48], [4, 4, 20, 12]], [0.8, 0.99, 0.5], [1, 1, 2])
    image = pictures()[0]
    ((first, second, nothing),) = segment(found, "test", [image], [np.array([*BOXES[0], [50, 30, 60, 40]])])
    mask, quality = first  # the IoU is 7/8: a row of four of 32 is missing
    assert (
        mask.sum() == 32 * 28 and mask[12, 8] and not mask[11, 8] and quality == pytest.approx(0.8 * 7 / 8)
    )
    mask, quality = second  # a dog, where there is no cow
    assert mask.sum() == 16 * 8 and quality == pytest.approx(0.5)
    assert nothing.startswith("no instance of Mask R-CNN at the box: IoU of at most 0.03")


def test_an_instance_of_the_category_goes_first():
    found = mask_rcnn([[8, 12, 40, 44], [8, 12, 40, 36]], [0.9, 0.6], [2, 1])
    ((mask, quality),) = segment(found, "test", pictures()[:1], [BOXES[0][:1]])[0]
    assert mask.sum() == 32 * 24 and quality == pytest.approx(0.6 * 0.75)
    far = mask_rcnn([[8, 12, 40, 44], [8, 12, 40, 20]], [0.9, 0.6], [2, 1])  # IoU .25: not at the box
    ((mask, quality),) = segment(far, "test", pictures()[:1], [BOXES[0][:1]])[0]
    assert mask.sum() == 32 * 32 and quality == pytest.approx(0.9)


def test_nothing_in_the_image():
    found = mask_rcnn([], [], [])
    assert (
        segment(found, "test", pictures()[:1], BOXES[:1])[0]
        == ["Mask R-CNN finds nothing in the image"] * 2
    )


def test_a_large_picture_is_shown_smaller(monkeypatch):
    """Masks of a hundred instances at the size of a large photo would not fit into memory."""
    monkeypatch.setattr(torchvision_models, "MAX_SIDE", 32)
    found = mask_rcnn([[4, 6, 20, 22]], [0.9], [1])
    ((mask, quality),) = segment(found, "test", pictures()[:1], [BOXES[0][:1]])[0]  # 64 wide
    assert found._model.sizes == [(24, 32)] and quality == pytest.approx(0.9)
    expected = np.zeros((48, 64), bool)
    expected[12:44, 8:40] = True
    np.testing.assert_array_equal(mask, expected)


@pytest.fixture
def small_mask_rcnn(monkeypatch, tmp_path):
    """A Mask R-CNN on a tiny backbone in place of the published one; returns a file of random weights."""
    from torchvision.models.detection import MaskRCNN, anchor_utils

    def get_model(name, weights, weights_backbone, num_classes, **settings):
        assert name == "maskrcnn_resnet50_fpn_v2" and settings == {"box_score_thresh": 0.05}
        backbone = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 8, stride=8), torch.nn.ReLU())
        backbone.out_channels = 8
        return MaskRCNN(
            backbone, num_classes, min_size=48, max_size=64,
            rpn_anchor_generator=anchor_utils.AnchorGenerator(((32,),), ((1.0,),)),
            box_roi_pool=torchvision.ops.MultiScaleRoIAlign(["0"], 7, 0),
            mask_roi_pool=torchvision.ops.MultiScaleRoIAlign(["0"], 14, 0),
            rpn_post_nms_top_n_test=20, **settings,
        )  # fmt: skip

    monkeypatch.setattr(torchvision.models, "get_model", get_model)
    torch.manual_seed(0)
    model = get_model("maskrcnn_resnet50_fpn_v2", None, None, 3, box_score_thresh=0.05)
    path = tmp_path / "tiny.pt"
    torch.save({"model": model.state_dict(), "categories": ["-", "cow", "dog"]}, path)
    return path


def test_mask_rcnn_from_a_file(workspace, small_mask_rcnn):
    opts = ("MODEL.WEIGHTS", str(small_mask_rcnn))
    loaded = find_segmenter("torchvision", workspace, opts)
    assert loaded.settings["MODEL.WEIGHTS hash"]
    segmenter, images = loaded.make(), pictures()
    # The boxes that the model itself finds are found again, so that there are masks to look at.
    own = segmenter._model([torch.from_numpy(im.transpose(2, 0, 1).copy()).float() / 255 for im in images])
    boxes = [found["boxes"][:2].detach().numpy() for found in own]
    assert all(len(box) for box in boxes)
    found = segment(segmenter, loaded.name, images, boxes)
    for results, image in zip(found, images):
        for mask, quality in results:
            assert mask.shape == image.shape[:2] and mask.dtype == bool and 0 < quality <= 1
    write_world(workspace)
    metrics = run(Config(category="cow", segmenter="torchvision", opts=opts), workspace)
    assert sum(metrics["by_status"].values()) == 5


# SAM and SAM 2


transformers = pytest.importorskip("transformers", reason="needs the extra wildshape[transformers]")


@pytest.fixture(scope="module")
def sam(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sam")
    torch.manual_seed(0)
    config = transformers.SamConfig(
        vision_config={
            "hidden_size": 16, "output_channels": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": 64, "patch_size": 8, "mlp_dim": 16, "window_size": 4, "global_attn_indexes": [0],
            "num_pos_feats": 8,
        },
        prompt_encoder_config={
            "hidden_size": 16, "image_size": 64, "patch_size": 8, "mask_input_channels": 4,
        },
        mask_decoder_config={
            "hidden_size": 16, "num_attention_heads": 2, "mlp_dim": 16, "num_hidden_layers": 1,
            "iou_head_hidden_dim": 8, "iou_head_depth": 2,
        },
    )  # fmt: skip
    transformers.SamModel(config).save_pretrained(folder)
    size = {"height": 64, "width": 64}
    image_processor = transformers.SamImageProcessor(
        size={"longest_edge": 64}, pad_size=size, mask_size={"longest_edge": 16},
        mask_pad_size={"height": 16, "width": 16},
    )  # fmt: skip
    transformers.SamProcessor(image_processor).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sam2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sam2")
    torch.manual_seed(0)
    backbone = transformers.Sam2HieraDetConfig(
        hidden_size=8, image_size=[64, 64], blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 1, 1], window_size_per_stage=[4, 4, 2, 2],
        global_attention_blocks=[3], window_positional_embedding_background_size=[4, 4],
    )  # fmt: skip
    config = transformers.Sam2Config(
        vision_config=transformers.Sam2VisionConfig(
            backbone_config=backbone, backbone_channel_list=[64, 32, 16, 8],
            backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]], fpn_hidden_size=32,
        ),
        prompt_encoder_config={"hidden_size": 32, "image_size": 64, "mask_input_channels": 4},
        mask_decoder_config={
            "hidden_size": 32, "num_attention_heads": 2, "mlp_dim": 16, "num_hidden_layers": 1,
            "iou_head_hidden_dim": 8, "iou_head_depth": 2,
        },
    )  # fmt: skip
    transformers.Sam2Model(config).save_pretrained(folder)
    image_processor = transformers.Sam2ImageProcessor(
        size={"height": 64, "width": 64}, mask_size={"height": 16, "width": 16}
    )
    transformers.Sam2Processor(image_processor).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sam2_video(sam2, tmp_path_factory):
    """As the published checkpoints are: of the model for videos, whose parts for one picture are taken."""
    folder = tmp_path_factory.mktemp("sam2_video")
    torch.manual_seed(0)
    whole = transformers.Sam2Config.from_pretrained(sam2)
    config = transformers.Sam2VideoConfig(
        vision_config=whole.vision_config, prompt_encoder_config=whole.prompt_encoder_config,
        mask_decoder_config=whole.mask_decoder_config, image_size=64, num_maskmem=1,
        memory_attention_hidden_size=32, memory_attention_num_layers=1,
        memory_attention_num_attention_heads=1,
        memory_attention_feed_forward_hidden_size=16, memory_encoder_hidden_size=32,
        memory_encoder_output_channels=8, mask_downsampler_embed_dim=32, memory_fuser_embed_dim=32,
        memory_fuser_intermediate_dim=16, memory_fuser_num_layers=1,
        memory_attention_rope_feat_sizes=[4, 4],
    )  # fmt: skip
    transformers.Sam2VideoModel(config).save_pretrained(folder)
    size = {"height": 64, "width": 64}
    transformers.Sam2VideoProcessor(
        transformers.Sam2ImageProcessor(size=size, mask_size={"height": 16, "width": 16}),
        transformers.Sam2VideoVideoProcessor(size=size),
    ).save_pretrained(folder)
    return folder


@pytest.fixture(params=["sam", "sam2", "sam2_video"])
def loaded(request, workspace, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    name = request.param.removesuffix("_video")
    return find_segmenter(f"{name}:{request.getfixturevalue(request.param)}", workspace)


def test_sam_gives_a_mask_for_every_box(loaded):
    segmenter, images = loaded.make(), pictures()
    found = segment(segmenter, loaded.name, images, BOXES)
    assert [len(results) for results in found] == [2, 1]
    for results, image, boxes in zip(found, images, BOXES):
        for (mask, quality), box in zip(results, boxes):
            assert mask.shape == image.shape[:2] and mask.dtype == bool and 0 <= quality <= 1
            # Together as alone.
            (((one, other),),) = segment(segmenter, loaded.name, [image], [box[None]])
            np.testing.assert_array_equal(one, mask)
            assert other == pytest.approx(quality, abs=1e-5)


def test_more_boxes_than_go_in_one_call(loaded, monkeypatch):
    from prepare_data.segmenters import sam_models

    segmenter, image = loaded.make(), pictures()[0]
    boxes = np.concatenate([BOXES[0], BOXES[0] + 3, BOXES[0][:1] + 6])
    whole = segment(segmenter, loaded.name, [image], [boxes])[0]
    monkeypatch.setattr(sam_models, "_BOXES_A_CALL", 2)
    for (mask, quality), (other, same) in zip(whole, segment(segmenter, loaded.name, [image], [boxes])[0]):
        np.testing.assert_array_equal(mask, other)
        assert quality == pytest.approx(same, abs=1e-5)


class BoxShaped(torch.nn.Module):
    """In place of a trained model: logits that are positive in the box, and a quality over 1."""

    def forward(self, pixel_values, input_boxes, multimask_output):
        assert pixel_values.shape[-2:] == (64, 64) and not multimask_output
        centres = torch.arange(64) + 0.5
        x0, y0, x1, y1 = input_boxes[0].T[..., None]
        # Distance inside of the box, in the network's pixels.
        x, y = torch.minimum(centres - x0, x1 - centres), torch.minimum(centres - y0, y1 - centres)
        masks = torch.minimum(x[:, None, :], y[:, :, None])[None, :, None]
        return SimpleNamespace(pred_masks=masks, iou_scores=torch.full((1, len(x0), 1), 1.2))


def test_sam_boxes_and_masks_are_in_the_image(loaded):
    """A model whose mask is the box itself gives the box back, whatever the image's size."""
    segmenter = loaded.make()
    segmenter._model = BoxShaped()
    images, boxes = pictures(), [BOXES[0], np.array([[10, 20, 40, 70]], np.float32)]
    for results, of_image in zip(segment(segmenter, loaded.name, images, boxes), boxes):
        for (mask, quality), box in zip(results, of_image):
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            own = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            assert np.abs(own - box).max() <= 1 and quality == 1
            assert mask.sum() == (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)


def test_sam_in_the_command(loaded, workspace):
    write_world(workspace)
    metrics = run(Config(category="cow", segmenter=loaded.name), workspace)
    assert sum(metrics["by_status"].values()) == 5
    assert set(workspace.load("masks")["segmenter"]) == {loaded.name}


def test_what_cannot_be_loaded(tmp_path, workspace, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="expected a model that segments by box, on the hub or in a folder"):
        find_segmenter(f"sam:{tmp_path}", workspace).make()
    with pytest.raises(UserError, match="--segmenter sam: expected no --opts; found points"):
        find_segmenter("sam2", workspace, ("points", "3")).make()
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(UserError, match=r'pip install "wildshape\[transformers\]"'):
        find_segmenter("sam", workspace).make()


# The simulated one


def test_the_simulated_segmenter_gives_the_truth(make_workspace):
    workspace = make_workspace("cow")
    make_diorama(
        DioramaConfig(category="cow", num_train=2, num_val=1, num_test=1, num_web=6, image_size=96),
        workspace,
    )
    truth, images = workspace.load("truth"), workspace.load("truth_images")
    publish(images, workspace.table_path("images"), Provenance("test"))
    rows = truth.take(truth["category"] == "cow")
    columns = {name: rows[name] for name in SCHEMAS["instances"] if not name.startswith("mask_")}
    publish(Table("instances", columns), workspace.table_path("instances"), Provenance("test"))
    metrics = run(Config(category="cow", segmenter="simulated"), workspace)
    assert metrics["segmenter"] == "simulated (the synthetic world's true masks)"
    assert metrics["masks"] == len(rows) and metrics["true_iou"]["p05"] == 1
    assert metrics["compared_with_labels"] == len(rows)
    assert metrics["keypoints_inside"]["visible"] > 0.75  # some lie on the outline
    instances = workspace.load("instances")
    for row, expected in zip(instances["mask_rle"], rows["mask_rle"]):
        np.testing.assert_array_equal(decode_mask(row), decode_mask(expected))
    segmenter = find_segmenter("simulated", workspace).make()
    box = np.array([[1, 1, 9, 9]], np.float32)
    assert segment(segmenter, "simulated", [picture(0)], [box]) == [["no picture of the synthetic web"]]
    with pytest.raises(UserError, match="expected no --opts; found miss"):
        find_segmenter("simulated", workspace, ("miss", "1")).make()
