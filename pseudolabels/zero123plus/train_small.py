"""Train the small Zero123Plus on pictures of the synthetic world, from random weights.

    python prepare_data/make_views.py --out small/data
    python pseudolabels/zero123plus/train_small.py --data small/data --out small/run --time-limit 100

Stages: the autoencoder; the latents of all pictures; the denoiser with captions; the vision encoder; the
layout of six views; the denoiser with views; figures. Run it again to continue. The pipeline so far is
written to `<out>/pipeline`.
`--start FOLDER` goes on from a pipeline that is there; with `--caption_steps 0` as well, it learns views
alone.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pseudolabels.zero123plus.small_config import Config
from wildshape.checkpoints import load_checkpoint, save_checkpoint
from wildshape.cli import guarded, say
from wildshape.device import bfloat16_pays, pick_device
from wildshape.errors import UserError
from wildshape.files import atomic_write, file_hash, read_json, write_json
from wildshape.stage import Provenance, input_hashes
from wildshape.training import FitResult, fit, fit_config


def need_diffusers() -> None:
    """Raise UserError with what to install if diffusers or transformers is missing."""
    try:
        import diffusers  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise UserError(
            'train_small needs diffusers and transformers; run: pip install "wildshape[diffusion]"'
        ) from error


@dataclass(frozen=True)
class Stage:
    """One training after the autoencoder's.

    Attributes:
        name: Of its folder.
        setting: Of the command's `--<setting>_steps` and `--<setting>_batch`.
        metric: What chooses the best checkpoint.
        learns: The pipeline's components that take its weights.
    """

    name: str
    setting: str
    metric: str
    learns: tuple[str, ...]


CAPTIONS = Stage("captions", "caption", "-loss", ("unet", "text_encoder"))
VISION = Stage("vision", "vision", "explained_apart", ("vision_encoder",))
LAYOUT = Stage("layout", "layout", "explained_apart", ("unet", "vision_encoder"))
VIEWS = Stage("views", "view", "-loss", ("unet", "vision_encoder"))
VISION_LR = 2.5  # times the learning rate of the other stages


class Training:
    """The stages, one after the other, on one pipeline.

    Args:
        config: The command's settings.
        sizes: Of the networks; by default those of the model that comes with the package. A pipeline that
            the training starts from has its own.

    Raises:
        UserError: if pictures or captions do not fit the pipeline.
    """

    def __init__(self, config: Config, sizes: Any = None) -> None:
        from pseudolabels.zero123plus.small_data import ViewFolder
        from pseudolabels.zero123plus.small_model import SmallConfig, build_pipeline, load_small
        from pseudolabels.zero123plus.small_training import WordIds

        self.config, self.sizes = config, sizes or SmallConfig()
        self.began = time.monotonic()
        self.views = ViewFolder(config.data)
        words = self.views.words()
        if config.start is None:
            self.pipeline = build_pipeline(self.sizes, words, config.seed)
        else:
            self.pipeline = load_small(config.start)
            known = WordIds(self.pipeline.tokenizer).known
            if unknown := ", ".join([word for word in words if word not in known][:5]):
                raise UserError(f"--data: expected words that {config.start} knows; found {unknown}")
        side = self.pipeline.config.view_size
        if self.views.side != side:
            raise UserError(f"--data: expected pictures of {side} pixels; found {self.views.side}")
        self.device = pick_device(config.device)
        self.autocast = bfloat16_pays(config.precision, self.device)
        self.metrics: dict[str, Any] = {}
        self.worked = False  # a call does some work, however little time it has

    def minutes_left(self) -> float | None:
        """Of the time limit, or None without one."""
        limit = self.config.time_limit
        return None if limit is None else limit - (time.monotonic() - self.began) / 60

    def over(self) -> bool:
        """Whether the time limit has passed, and something was done in it."""
        left = self.minutes_left()
        return self.worked and left is not None and left <= 0

    def late(self) -> bool:
        """Whether to stop; asked before each piece of work, which is done unless the answer is yes."""
        if self.over():
            return True
        self.worked = True
        return False

    def provenance(self, stage: str, inputs: Mapping[str, str], **settings: Any) -> Provenance:
        """What a stage's result depends on."""
        common = {"seed": self.config.seed, "lr": self.config.lr}
        if self.config.start is None:
            common["sizes"] = asdict(self.sizes)
        inputs = {"views": self.views.fingerprint, **inputs}
        return Provenance(f"train_small {stage}", {**common, **settings}, inputs)

    def fit(self, stage: str, task: Any, provenance: Provenance, metric: str) -> FitResult:
        """Train a stage, or continue it; its figures go to the metrics."""
        from pseudolabels.zero123plus.small_training import training_cost

        config = self.config
        steps = provenance.config["steps"]
        fitting = fit_config(
            config,
            steps=steps,
            batch_size=provenance.config["batch"],
            time_limit=self.minutes_left(),
            metric=metric,
            schedule="cosine",
            warmup=min(500, steps // 10),
            autocast=self.autocast,
            title=f"small model, {stage}",
        )
        manifest = config.out / stage / "manifest.json"
        before = read_json(manifest)["step"] if manifest.exists() else 0
        result = fit(task, fitting, config.out / stage, provenance, {"kind": f"small {stage}"})
        self.worked |= result.step != before
        self.metrics[stage] = {
            **result.metrics,
            "step": result.step,
            "steps": steps,
            **training_cost(config.out / stage / "metrics.jsonl"),
        }
        return result

    def average(self, result: FitResult, stage: str) -> dict[str, torch.Tensor]:
        """The averaged weights of a stage's best checkpoint."""
        state = load_checkpoint(result.best_path, f"small {stage}")["model"]
        return {name[5:]: value for name, value in state.items() if name.startswith("mean.")}

    def task_config(self, **changed: Any) -> Any:
        """Settings of a task."""
        from pseudolabels.zero123plus.small_training import TaskConfig

        settings = {"lr": self.config.lr, "seed": self.config.seed, "device": self.device}
        return TaskConfig(**{**settings, **changed})

    def vae(self) -> bool:
        """Train the autoencoder and give its latents unit variance; whether it is done."""
        from pseudolabels.zero123plus.small_data import all_images
        from pseudolabels.zero123plus.small_model import vae_pixels, whiten
        from pseudolabels.zero123plus.small_training import to_pixels
        from pseudolabels.zero123plus.small_vae_task import VaeTask

        config, vae = self.config, self.pipeline.vae
        provenance = self.provenance("vae", {}, steps=config.vae_steps, batch=config.vae_batch)
        done = config.out / "vae" / "white.pt"
        if done.exists():
            state = load_checkpoint(done, "small white vae")
            if state["fingerprint"] == provenance.fingerprint:
                vae.load_state_dict(state["model"])
                self.metrics["vae"] = json.loads(state["metrics"])
                return True
        images = {
            split: all_images(self.views.pictures(split), self.views.rings(split), limit)
            for split, limit in (("train", None), ("val", 256))
        }
        task = VaeTask(self.pipeline, images["train"], images["val"], self.task_config())
        result = self.fit("vae", task, provenance, "psnr")
        if not result.finished:
            return False
        vae.load_state_dict(self.average(result, "vae"))
        vae.eval()
        some = images["train"][:: max(len(images["train"]) // 1024, 1)]
        with torch.inference_mode():
            found = [
                vae.encode(vae_pixels(to_pixels(some[i : i + 64], self.device))).latent_dist.mode()
                for i in range(0, len(some), 64)
            ]
        latents = torch.cat(found).transpose(0, 1).flatten(1)
        whiten(vae, latents.mean(1), latents.std(1))
        facts = {"fingerprint": provenance.fingerprint, "metrics": json.dumps(self.metrics["vae"])}
        save_checkpoint(done, {"model": vae.state_dict(), "extra": {"kind": "small white vae"}, **facts})
        return True

    def run(self) -> dict[str, Any]:
        """All stages, as far as the time goes; returns and writes the metrics."""
        finished = self._stages()
        totals = [
            one["cpu_hours"]
            for one in self.metrics.values()
            if isinstance(one, dict) and "cpu_hours" in one
        ]
        self.metrics |= {"finished": finished, "cpu_hours": sum(totals)}
        write_json(self.config.out / "metrics.json", self.metrics)
        place = ", ".join(
            f"{name} {self.metrics[name]['step']} of {self.metrics[name]['steps']} steps"
            for name in ("vae", "captions", "vision", "layout", "views")
            if name in self.metrics
        )
        say(f"train_small: {place}" + ("" if finished else "; run again"))
        return self.metrics

    def _stages(self) -> bool:
        from pseudolabels.zero123plus.small_latents import read_pictures, read_rings, write_latents

        if self.config.start is None:
            if not self.vae() or self.over():
                return False
            key = file_hash(self.config.out / "vae" / "white.pt")[:16]
        else:
            key = folder_key(self.config.start)
        folder = self.config.out / f"latents-{key}-{self.views.fingerprint[:8]}"
        vae = self.pipeline.vae.requires_grad_(False).eval()
        # One layout, whether it was trained now or read: convolutions round differently in another.
        vae.to(self.device, memory_format=torch.channels_last)
        if not write_latents(vae, self.views, folder, self.late):
            return False
        pictures = {split: read_pictures(self.views, folder, split) for split in ("train", "val")}
        inputs = {"vae": key}
        if self.config.caption_steps:
            result = self._learn(CAPTIONS, self._caption_task(pictures), {"vae": key})
            # A pipeline that has learnt views stays until it has learnt more of them.
            if not (self.config.view_steps and (self.config.out / VIEWS.name / "last.pt").exists()):
                self.export()
            if not result.finished or self.over():
                return False
            inputs["captions"] = file_hash(result.best_path)[:16]
        if not self.config.view_steps:
            return True
        rings = {split: read_rings(self.views, folder, split) for split in ("train", "val")}
        if self.config.vision_steps:
            result = self._learn(VISION, self._vision_task(rings), {"vae": key})
            if not result.finished or self.over():
                return False
            inputs["vision"] = file_hash(result.best_path)[:16]
        if self.config.layout_steps:
            result = self._learn(LAYOUT, self._layout_task(rings, pictures["train"]), inputs)
            if not result.finished or self.over():
                return False
            inputs["layout"] = file_hash(result.best_path)[:16]
        finished = self._learn(VIEWS, self._views_task(rings, pictures["train"]), inputs).finished
        self.export()
        if not finished and not self.config.figures:
            return False
        # What views cost of what was learnt from captions.
        self.metrics["captions_after_views"] = self._caption_task(pictures).evaluate()
        return self._figures() and finished

    def _caption_task(self, pictures: Mapping[str, Any]) -> Any:
        from pseudolabels.zero123plus.small_caption_task import CaptionTask

        both = pictures["train"], pictures["val"]
        return CaptionTask(self.pipeline, *both, self.views.parts, self.task_config())

    def _vision_task(self, rings: Mapping[str, Any]) -> Any:
        from pseudolabels.zero123plus.small_vision_task import VisionTask

        settings = self.task_config(lr=VISION_LR * self.config.lr)
        return VisionTask(self.pipeline, rings["train"], rings["val"], settings)

    def _layout_task(self, rings: Mapping[str, Any], captions: Any) -> Any:
        from pseudolabels.zero123plus.small_layout_task import LayoutTask
        from pseudolabels.zero123plus.small_ring_task import RingData

        return LayoutTask(self.pipeline, RingData(**rings, captions=captions), self.task_config())

    def _views_task(self, rings: Mapping[str, Any], captions: Any) -> Any:
        from pseudolabels.zero123plus.small_ring_task import RingData
        from pseudolabels.zero123plus.small_views_task import ViewsTask

        settings = self.task_config(lr=self.config.lr / 2)
        return ViewsTask(self.pipeline, RingData(**rings, captions=captions), settings)

    def _learn(self, stage: Stage, task: Any, inputs: Mapping[str, str]) -> FitResult:
        """Train a stage as far as the time goes, and take its weights."""
        steps, batch = (getattr(self.config, f"{stage.setting}_{what}") for what in ("steps", "batch"))
        provenance = self.provenance(stage.name, inputs, steps=steps, batch=batch)
        result = self.fit(stage.name, task, provenance, stage.metric)
        weights = self.average(result, stage.name)
        for name in stage.learns:
            start = f"{name}."
            own = {
                key.removeprefix(start): value for key, value in weights.items() if key.startswith(start)
            }
            component = getattr(self.pipeline, name)
            component.load_state_dict(own)
            component.eval()
        return result

    def export(self) -> None:
        """Write the pipeline as it is, in half precision."""
        from pseudolabels.zero123plus.small_model import count_parameters, save_half

        size = save_half(self.pipeline, self.config.out / "pipeline")
        self.metrics["parameters"] = count_parameters(self.pipeline)
        self.metrics["bytes"] = size

    def _figures(self) -> bool:
        """Sample views of unseen animals from the folder as it was written, and compare them."""
        import cv2

        from pseudolabels.zero123plus.small_metrics import (
            SamplingConfig,
            compare,
            sample_views,
            sheet,
            truth,
        )
        from pseudolabels.zero123plus.small_model import load_small

        config = self.config
        val = self.views.rings("val")
        images, true, _ = truth(val, min(config.animals, len(val.species)))
        sampling = SamplingConfig(len(images), config.sampling_steps, config.guidance_scale, config.seed)
        weights = config.out / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors"
        key = f"{file_hash(weights)[:16]}-{sampling.steps}-{sampling.guidance_scale:g}"
        pipeline = load_small(config.out / "pipeline").to(self.device)
        views = sample_views(pipeline, images, sampling, config.out / f"samples-{key}", self.late)
        if views is None:
            return False
        self.metrics["six_views"] = {
            **compare(views, images, val, self.views.rings("train")),
            **asdict(sampling),
        }
        picture = sheet(images[:12], views[:12], true[:12])
        with atomic_write(config.out / "six_views.png") as handle:
            handle.write(cv2.imencode(".png", picture[..., ::-1])[1].tobytes())
        return True


def folder_key(folder: Path) -> str:
    """A hash of a pipeline's weights."""
    files = sorted(folder.rglob("*.safetensors"))
    return Provenance("pipeline", {}, input_hashes(folder, *files)).fingerprint[:16]


def run(config: Config, sizes: Any = None) -> dict[str, Any]:
    """Train or continue; returns the metrics that are also written to `<out>/metrics.json`."""
    need_diffusers()
    if pick_device(config.device).type == "cpu":
        torch.set_num_threads(config.threads)
    return Training(config, sizes).run()


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the script."""
    import tyro

    arguments = list(sys.argv[1:] if argv is None else argv)

    def action() -> None:
        run(tyro.cli(Config, args=arguments, prog="train_small.py", description=Config.__doc__))

    return guarded(action, debug="--debug" in arguments)


if __name__ == "__main__":
    sys.exit(main())
