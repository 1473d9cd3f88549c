"""What is kept and what is made anew when the small model's training is called again."""

from dataclasses import replace

import pytest

pytest.importorskip("diffusers", reason="needs the extra diffusion")

from test_train_small import config, weights  # noqa: F401

from pseudolabels.zero123plus import small_latents, train_small
from pseudolabels.zero123plus.small_data import ViewFolder


def test_other_pictures_have_latents_of_their_own(config, tiny_sizes, monkeypatch):  # noqa: F811
    asked = []
    monkeypatch.setattr(small_latents, "write_latents", lambda vae, views, folder, _: asked.append(folder))
    fast = replace(config, vae_steps=1)
    assert not train_small.run(fast, tiny_sizes)["finished"]
    start = ViewFolder.__init__

    def other(self, *given, **more):
        start(self, *given, **more)
        self.fingerprint = "anothers" + self.fingerprint

    monkeypatch.setattr(ViewFolder, "__init__", other)
    train_small.run(replace(fast, overwrite=True), tiny_sizes)
    assert len(set(asked)) == 2 and {folder.parent for folder in asked} == {config.out}
    # The autoencoder is another one, too: the end of the name is that of the pictures.
    assert not asked[0].name.endswith("-anothers") and asked[1].name.endswith("-anothers")


def test_a_pipeline_with_views_is_not_replaced_by_captions_alone(config, tiny_sizes, monkeypatch):  # noqa: F811
    train_small.run(config, tiny_sizes)
    before = weights(config.out / "pipeline")
    exported = []
    original = train_small.Training.export

    def stopped(self, rings, captions):
        exported.append("views begin")
        raise KeyboardInterrupt

    monkeypatch.setattr(
        train_small.Training, "export", lambda self: exported.append("export") or original(self)
    )
    monkeypatch.setattr(train_small.Training, "_views_task", stopped)
    with pytest.raises(KeyboardInterrupt):
        train_small.run(config, tiny_sizes)
    after = weights(config.out / "pipeline")
    assert exported == ["views begin"] and all((before[name] == after[name]).all() for name in before)
