"""Detectors of the transformers library, on tiny random models that are saved and loaded from a folder."""

import numpy as np
import pytest
import torch

from prepare_data.detectors import detect, find_detector
from prepare_data.detectors.coco import COCO_CLASSES
from wildshape.errors import UserError

transformers = pytest.importorskip("transformers", reason="needs the extra wildshape[transformers]")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def rt_detr(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rtdetr")
    torch.manual_seed(0)
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8, 8, 8],
        depths=[1, 1, 1, 1],
        out_features=["stage2", "stage3", "stage4"],
    )
    config = transformers.RTDetrConfig(
        backbone_config=backbone, encoder_hidden_dim=16, encoder_in_channels=[8, 8, 8], encoder_ffn_dim=16,
        encoder_attention_heads=2, d_model=16, decoder_in_channels=[16, 16, 16], decoder_ffn_dim=16,
        decoder_layers=1, decoder_attention_heads=2, num_queries=20, num_denoising=0,
        id2label=dict(enumerate(COCO_CLASSES)),
    )  # fmt: skip
    model = transformers.RTDetrForObjectDetection(config)
    for name, parameter in model.named_parameters():
        if "class_embed" in name and name.endswith("bias"):
            parameter.data.zero_()  # else a fresh model is sure that nothing is there
    model.save_pretrained(folder)
    transformers.RTDetrImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def grounding_dino(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dino")
    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "cow", "cattle", "calf", "bull", "##s"]
    (folder / "vocab.txt").write_text("\n".join(words))
    tokenizer = transformers.BertTokenizer(str(folder / "vocab.txt"))
    config = transformers.GroundingDinoConfig(
        backbone_config=transformers.SwinConfig(
            image_size=32, patch_size=4, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2],
            window_size=2, out_features=["stage2", "stage3", "stage4"],
        ),
        text_config=transformers.BertConfig(
            vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=16,
        ),
        d_model=32, encoder_layers=1, decoder_layers=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
        num_queries=10, encoder_attention_heads=2, decoder_attention_heads=2, num_feature_levels=4,
        max_text_len=64,
    )  # fmt: skip
    transformers.GroundingDinoForObjectDetection(config).save_pretrained(folder)
    image_processor = transformers.GroundingDinoImageProcessor(
        size={"shortest_edge": 32, "longest_edge": 48}
    )
    transformers.GroundingDinoProcessor(image_processor, tokenizer).save_pretrained(folder)
    return folder


def pictures():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, shape, dtype=np.uint8) for shape in ((40, 60, 3), (80, 50, 3))]


def check(found, images):
    assert len(found) == len(images)
    for (boxes, scores, labels), image in zip(found, images):
        height, width = image.shape[:2]
        assert boxes.shape == (len(scores), 4) and len(labels) == len(scores)
        # Centres lie in the image; sizes follow from it too.
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        assert (centres >= 0).all() and (centres <= (width, height)).all()
        assert ((scores > 0) & (scores <= 1)).all()


def test_class_model_from_a_folder(rt_detr, workspace):
    loaded = find_detector(f"transformers:{rt_detr}", workspace)
    detector, images = loaded.make(), pictures()
    found = detect(detector, loaded.name, images)
    check(found, images)
    assert sum(len(labels) for _, _, labels in found) > 0
    assert {label for _, _, labels in found for label in labels} <= set(COCO_CLASSES)
    assert detector.default_threshold == 0.6
    # In one call as one by one.
    for image, together in zip(images, found):
        (alone,) = detect(detector, loaded.name, [image])
        np.testing.assert_allclose(alone[0], together[0], atol=1e-3)


def test_grounding_dino_asks_for_the_category(grounding_dino, workspace):
    loaded = find_detector(f"transformers:{grounding_dino}", workspace, ("text_threshold", "0.0"))
    detector, images = loaded.make(), pictures()
    assert detector.text.startswith("cow. cattle. calf.")
    found = detect(detector, loaded.name, images)
    check(found, images)
    assert sum(len(labels) for _, _, labels in found) > 0
    assert detector.default_threshold == 0.35
    other = find_detector(f"transformers:{grounding_dino}", workspace, ("text", "Bull. calf")).make()
    assert other.text == "bull. calf."
    assert other.named("calf bull") == "cow" and other.named("tree") == "tree"
    assert other.named("calfskin") == "calfskin"


def test_what_cannot_be_loaded(tmp_path, workspace):
    with pytest.raises(UserError, match="expected a detection model on the hub or in a folder"):
        find_detector(f"transformers:{tmp_path}", workspace).make()
    with pytest.raises(UserError, match="--opts: expected some of text, text_threshold; found words"):
        find_detector("transformers", workspace, ("words", "x")).make()
    transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1).save_pretrained(
        tmp_path
    )
    with pytest.raises(UserError, match="expected a detection model"):
        find_detector(f"transformers:{tmp_path}", workspace).make()


def test_without_transformers(monkeypatch, workspace):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(UserError, match=r'pip install "wildshape\[transformers\]"'):
        find_detector("transformers", workspace).make()
