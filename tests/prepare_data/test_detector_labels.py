"""Detectors that do not know the category are refused before any image is read."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from prepare_data.save_boxes import check_labels
from wildshape.category import load_category
from wildshape.errors import UserError


def test_a_detector_must_know_the_category():
    cow = load_category("cow")
    okapi = replace(cow, name="okapi", coco_label=None, synonyms=())
    classes = SimpleNamespace(labels=["__background__", "person", "Cow"])
    check_labels(classes, cow)
    check_labels(SimpleNamespace(labels={0: "sheep", 1: "okapi"}), okapi)
    check_labels(SimpleNamespace(), okapi)  # asked by name
    with pytest.raises(
        UserError, match="expected a detector that knows okapi; this one has 3 other classes"
    ):
        check_labels(classes, okapi)
