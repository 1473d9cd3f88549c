"""Tiny Zero123Plus pipelines and pictures to train them on."""

import pytest
from tiny_models import TINY, WORDS


@pytest.fixture(scope="session")
def tiny_sizes():
    from pseudolabels.zero123plus.small_model import SmallConfig

    return SmallConfig(**TINY)


@pytest.fixture
def tiny_pipeline(tiny_sizes):
    from pseudolabels.zero123plus.small_model import build_pipeline

    pipeline = build_pipeline(tiny_sizes, WORDS)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="session")
def tiny_views(tmp_path_factory):
    """A folder of make_views.py: 8 animals of each kind and split, 16 pixels wide."""
    from prepare_data import make_views

    folder = tmp_path_factory.mktemp("views")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(make_views, "ANIMALS_A_FILE", 8)
        make_views.run(
            make_views.Config(
                out=folder, animals=8, rings=8, val_animals=8, val_rings=8, identities=1,
                val_identities=1, side=16, seed=9902,
            )
        )  # fmt: skip
    return folder
