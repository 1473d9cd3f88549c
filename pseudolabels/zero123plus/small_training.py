"""What the small model's trainings share: settings, captions as ids, pixels, noise."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pseudolabels.zero123plus.pipeline import scale_latents
from pseudolabels.zero123plus.small_model import SCALING, clip_pixels

DROPPED = 0.1  # share of captions and pictures that training leaves out, for guidance


@dataclass(frozen=True)
class TaskConfig:
    """What the tasks share.

    Attributes:
        lr: AdamW's learning rate.
        seed: Of evaluations.
        device: Where to train.
        kl_weight: Of the autoencoder's divergence, by element of the latents.
        replay: Weight of the captions' loss while views are learnt.
    """

    lr: float = 1e-3
    seed: int = 0
    device: torch.device | str = "cpu"
    kl_weight: float = 1e-4
    replay: float = 0.5


class CpuClock:
    """Processor time of this process since it was made, so that a training's cost can be added up."""

    def __init__(self) -> None:
        self.began = time.process_time()

    def scalars(self) -> dict[str, float]:
        """As a training logs it."""
        return {"cpu_seconds": time.process_time() - self.began}


class Float32Attention(TorchFunctionMode):
    """While a block runs, attention is computed in float32, whatever autocast says.

    Its gradient in bfloat16 takes PyTorch several times as long on a CPU.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function of torch, attention with its queries, keys and values in float32."""
        if func is not nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        with torch.autocast(args[0].device.type, enabled=False):
            found = func(*(value.float() for value in args[:3]), *args[3:], **(kwargs or {}))
        return found.to(args[0].dtype)


def quick_attention(device: torch.device) -> AbstractContextManager[Any]:
    """While a block runs, attention as it trains fastest on a device."""
    return Float32Attention() if device.type == "cpu" else nullcontext()


def training_cost(path: Path) -> dict[str, float]:
    """Hours that the steps in a metrics.jsonl took, of wall-clock and of all processors together.

    Each call counts from its own start; what a kill threw away is not counted.
    """
    wall = cpu = 0.0
    last = {"seconds": 0.0, "cpu_seconds": 0.0}
    for line in path.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if entry["seconds"] < last["seconds"]:
            wall, cpu = wall + last["seconds"], cpu + last["cpu_seconds"]
            last["cpu_seconds"] = 0.0
        last = {key: entry.get(key, last[key]) for key in last}
    return {"hours": (wall + last["seconds"]) / 3600, "cpu_hours": (cpu + last["cpu_seconds"]) / 3600}


def to_pixels(images: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """RGB uint8 [B, H, W, 3] as float32 [B, 3, H, W] in 0 to 1."""
    return torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2).float() / 255


def embed(vision_encoder: Any, images: Tensor) -> Tensor:
    """Embeddings [B, D] of pictures RGB uint8 [B, S, S, 3]."""
    pixels = images.permute(0, 3, 1, 2).float() / 255
    return vision_encoder(clip_pixels(pixels)).image_embeds


def psnr(first: Tensor, second: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of pictures in 0 to 1 [B, C, H, W], in decibels: [B]."""
    return -10 * torch.log10((first - second).square().mean((1, 2, 3)).clamp_min(1e-10))


def v_target(scheduler: DDPMScheduler, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What v-prediction must predict (Salimans and Ho, arXiv 2202.00512)."""
    return scheduler.get_velocity(clean, noise, timesteps)


class WordIds:
    """Captions to token ids, as the tokenizer gives them for known words, and fast.

    Args:
        tokenizer: Of the pipeline.
    """

    def __init__(self, tokenizer: Any) -> None:
        vocabulary = tokenizer.get_vocab()
        self.known = {token[:-4]: number for token, number in vocabulary.items() if token.endswith("</w>")}
        self.start, self.end = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.pad, self.length = tokenizer.pad_token_id, tokenizer.model_max_length

    def __call__(self, caption: str) -> np.ndarray:
        """Ids int64 [L], padded and cut."""
        words = [self.known[word] for word in caption.split()][: self.length - 2]
        ids = np.full(self.length, self.pad, np.int64)
        ids[: len(words) + 2] = [self.start, *words, self.end]
        return ids


def caption_error(unet: Any, text_encoder: Any, noise: DDPMScheduler, batch: dict[str, Tensor]) -> Tensor:
    """Squared error of v by item [B] for captioned latents."""
    clean = scale_latents(batch["latents"] * SCALING)
    noisy = noise.add_noise(clean, batch["noise"], batch["timestep"])
    with quick_attention(clean.device):
        tokens = text_encoder(batch["ids"])[0]
        predicted = unet(noisy, batch["timestep"], tokens).sample.float()
    target = v_target(noise, clean, batch["noise"], batch["timestep"])
    return (predicted - target).square().mean((1, 2, 3))
