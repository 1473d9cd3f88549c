"""Picture the synthetic world's animals for training an image model: with captions, and from all around.

    python prepare_data/make_views.py --out small/data
    python pseudolabels/zero123plus/train_small.py --data small/data --out small

Files of 32 animals each are written whole; run it again to continue.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prepare_data.diorama.species import SPECIES
from prepare_data.diorama.subjects import PARTS, Subject, sample_subject
from prepare_data.diorama.views import sample_picture, sample_ring
from prepare_data.diorama.zoo import Zoo
from wildshape.cli import guarded, say
from wildshape.errors import UserError
from wildshape.files import atomic_write, read_json, write_json
from wildshape.stage import Provenance, describe_change, fingerprint, progress

ANIMALS_A_FILE = 32
PICTURES_AN_ANIMAL = 4
_VARIETY = 0.9
_STREAMS = {"pictures": 21, "rings": 22}  # of random numbers


@dataclass(frozen=True, kw_only=True)
class Config:
    """Picture the synthetic world's animals, with captions and from all around."""

    out: Path = Path("views")
    """Folder for the pictures."""
    animals: int = 6144
    """Posed animals with captioned pictures, four each."""
    rings: int = 2048
    """Posed animals seen from all around."""
    val_animals: int = 96
    """Animals with captioned pictures, of individuals that are not trained on."""
    val_rings: int = 96
    """Animals seen from all around, of individuals that are not trained on."""
    identities: int = 48
    """Individuals a species to train on."""
    val_identities: int = 8
    """Further individuals a species, to validate on."""
    side: int = 64
    """Pixels of a picture's side."""
    seed: int = 9100
    """Seed of individuals and pictures; worlds should have another."""
    threads: int = 1
    """Animals pictured at once."""
    time_limit: float | None = None
    """Minutes after which to stop between two files; the same command continues."""
    overwrite: bool = False
    """Replace pictures that were made with other settings."""
    debug: bool = False
    """Show the traceback of an error."""

    def __post_init__(self) -> None:
        """Check ranges and name the flag that is out of them."""
        for name in ("animals", "rings", "val_animals", "val_rings"):
            if getattr(self, name) % ANIMALS_A_FILE:
                raise UserError(
                    f"--{name.replace('_', '-')}: expected a multiple of {ANIMALS_A_FILE}; "
                    f"found {getattr(self, name)}"
                )
        if self.identities < 1 or self.val_identities < 1:
            raise UserError("--identities and --val-identities: expected at least 1")
        if self.side < 16 or self.side % 4:
            raise UserError(f"--side: expected a multiple of 4 from 16 on; found {self.side}")


def make_zoo(config: Config) -> Zoo:
    """The individuals that are pictured."""
    return Zoo(config.seed, (), _VARIETY)


def subject_for(config: Config, zoo: Zoo, kind: str, split: str, index: int) -> tuple[Subject, Any]:
    """Animal `index` of a kind and split, and the generator of its pictures."""
    rng = np.random.default_rng([config.seed, _STREAMS[kind], split == "val", index])
    species = sorted(SPECIES)[index % len(SPECIES)]
    identity = int(rng.integers(config.identities))
    if split == "val":
        identity = config.identities + int(rng.integers(config.val_identities))
    painted = 0.5 if kind == "pictures" else 0.25
    return sample_subject(zoo, species, identity, rng, painted), rng


def picture_columns(config: Config, zoo: Zoo, split: str, index: int) -> dict[str, np.ndarray]:
    """Captioned pictures of an animal: image, parts, caption (JSON: title and phrases)."""
    subject, rng = subject_for(config, zoo, "pictures", split, index)
    made = [sample_picture(subject, rng, config.side) for _ in range(PICTURES_AN_ANIMAL)]
    captions = [json.dumps({"title": one.title, "phrases": one.phrases}) for one in made]
    return {
        "image": np.stack([one.image for one in made]),
        "parts": np.stack([one.parts for one in made]),
        "caption": np.array(captions),
    }


def ring_columns(config: Config, zoo: Zoo, split: str, index: int) -> dict[str, np.ndarray]:
    """An animal from all around: inputs, targets, species."""
    subject, rng = subject_for(config, zoo, "rings", split, index)
    ring = sample_ring(subject, rng, config.side)
    return {
        "inputs": ring.inputs[None],
        "targets": ring.targets[None],
        "species": np.array([subject.species]),
    }


def run(config: Config) -> dict[str, Any]:
    """Make what is missing; returns the counts and whether all is there."""
    import time

    began = time.monotonic()
    _check_folder(config)
    zoo = make_zoo(config)
    plan: list[tuple[str, str, int, Callable[..., dict[str, np.ndarray]]]] = [
        ("pictures", "val", config.val_animals, picture_columns),
        ("rings", "val", config.val_rings, ring_columns),
        ("pictures", "train", config.animals, picture_columns),
        ("rings", "train", config.rings, ring_columns),
    ]
    todo = [
        (config.out / f"{kind}-{split}-{start // ANIMALS_A_FILE:04d}.npz", split, start, columns)
        for kind, split, count, columns in plan
        for start in range(0, count, ANIMALS_A_FILE)
    ]
    missing = [item for item in todo if not item[0].exists()]
    done = len(todo) - len(missing)
    with (
        ThreadPoolExecutor(max(config.threads, 1)) as pool,
        progress(title="views", total=len(todo), unit="file", initial=done) as bar,
    ):
        for path, split, start, columns in missing:
            late = config.time_limit is not None and time.monotonic() - began > 60 * config.time_limit
            if late:
                break
            numbers = range(start, start + ANIMALS_A_FILE)
            rows = list(pool.map(lambda n: columns(config, zoo, split, n), numbers))  # noqa: B023
            with atomic_write(path) as handle:
                np.savez_compressed(
                    handle, **{name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
                )
            done += 1
            bar.update()
    finished = done == len(todo)
    facts = {"files": done, "files_planned": len(todo), "finished": finished}
    say(
        f"make_views: {done} of {len(todo)} files of captioned pictures and views"
        + ("" if finished else "; run again")
    )
    return {**facts, "seconds": time.monotonic() - began}


def _check_folder(config: Config) -> None:
    """Read or write what the folder's pictures were made with."""
    free = {"out", "threads", "time_limit", "overwrite", "debug"}
    settings = {key: value for key, value in asdict(config).items() if key not in free}
    provenance = Provenance("make_views", settings)
    path = config.out / "views.json"
    if path.exists():
        old = read_json(path)["provenance"]
        if fingerprint(old) == provenance.fingerprint:
            return
        if not config.overwrite:
            raise UserError(
                f"{config.out} holds pictures made with other settings "
                f"({describe_change(old, provenance.as_dict())}); add --overwrite, or choose another --out"
            )
        for file in config.out.glob("*.npz"):
            file.unlink()
    counts = {
        f"{kind}-{split}": count // ANIMALS_A_FILE
        for kind, split, count in (
            ("pictures", "train", config.animals),
            ("pictures", "val", config.val_animals),
            ("rings", "train", config.rings),
            ("rings", "val", config.val_rings),
        )
    }
    facts = {"provenance": provenance.as_dict(), "files": counts, "parts": PARTS, "side": config.side}
    write_json(path, facts)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the script."""
    import tyro

    arguments = list(sys.argv[1:] if argv is None else argv)

    def action() -> None:
        run(tyro.cli(Config, args=arguments, prog="make_views.py", description=Config.__doc__))

    return guarded(action, debug="--debug" in arguments)


if __name__ == "__main__":
    sys.exit(main())
