"""The model that comes with the package finds points that name keypoints: no labels, a few minutes."""

import pytest

pytest.importorskip("diffusers", reason="needs the extra diffusion")

from prepare_data import make_diorama
from prepare_data.diorama.server import serving
from pseudolabels import generate_pl, train_tokens
from wildshape.run import Pipeline
from wildshape.run_config import Config
from wildshape.workspace import Workspace


@pytest.mark.slow
def test_points_of_the_small_model_tell_keypoints(tmp_path):
    """On animals that no network has seen, better than the mean pose by half."""
    workspace = Workspace(tmp_path, "horse", "small")
    common = {"category": "horse", "name": "small", "data_root": tmp_path}
    sizes = {"num_train": 60, "num_val": 30, "num_test": 2, "num_web": 4}
    make_diorama.run(make_diorama.Config(**common, seed=5, **sizes), workspace)
    pipeline = Pipeline(Config(**common, labels="diorama", seed=5, size="cpu"), workspace)
    with serving(workspace):
        pipeline.images()
    pipeline.boxes("simulated")
    instances, aside = workspace.table_path("instances"), tmp_path / "instances.parquet"
    instances.rename(aside)  # too few to learn from: the photos of train are taken
    short = {"steps": 40, "eval_every": 20, "num_tokens": 150, "device": "cpu"}
    found = train_tokens.run(train_tokens.Config(**common, **short), workspace)
    assert found["finished"] and found["matted"] == found["crops"] == 60
    aside.rename(instances)
    facts = generate_pl.run(generate_pl.Config(**common, views=3, batch_size=4, device="cpu"), workspace)
    val = facts["val"]
    assert val["animals"] == 30 and val["pck@0.1"] > 1.5 * val["pck@0.1_of_mean_position"]
    assert val["error_percent"] < 20 and facts["spread_of_crop"] > 0.1
