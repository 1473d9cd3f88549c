"""Which animals, seed and labels the trainings of a run get."""

from test_rounds import calls, three_rounds  # noqa: F401

from wildshape.run import Pipeline
from wildshape.run_config import Config


def test_every_training_has_the_runs_seed_and_further_labels(workspace, calls):  # noqa: F811
    three_rounds(workspace, seed=7, labels_from="sheep")
    trained = [s for _, module, s in calls if module in ("pose.train", "acsm.train")]
    assert len(trained) >= 6
    assert {(s.get("seed"), s.get("labels_from")) for s in trained} == {(7, "sheep")}


def test_arms_learn_from_their_own_animals(workspace, calls):  # noqa: F811
    """The ceiling's shapes and encoder see true keypoints, the labels' arm no web animal."""
    config = Config(category="cow", filter="cf_cm", size="cpu")
    pipeline = Pipeline(config, workspace)
    pipeline.acsm(with_ceiling=True)
    for module in ("pose.train", "acsm.train"):
        made = {s["arm"]: s for _, name, s in calls if name == module}
        assert set(made) == {"labels", "cf_cm", "ceiling"}, module
        assert "use_web_images" not in made["labels"]
        web = {"use_web_images": True, "web_images_num": 7, "filter": "cf_cm"}
        assert web.items() <= made["cf_cm"].items() and "pl_source" not in made["cf_cm"]
        assert (web | {"pl_source": "truth"}).items() <= made["ceiling"].items()
