"""Do unsupervised points work? Keypoints from a diffusion model's points, on synthetic worlds.

Points are learnt on a world's unlabelled crops, and named by the same regression on the same labelled
animals for whoever is compared: the model, the mean pose, the same model with an untrained U-Net, and
clusters of pixels by colour and place. Measured on the labelled photos of test, in four parts:

    works     the model and the three baselines
    switches  global embeddings, guidance and reference attention, each alone and all together
    labels    how few labelled photos the regression needs, for all of `works`
    sweep     layers, noise, learning rate, blobs, how points are read and how many, side of the maps and
              frame, on --sweep_seeds worlds of its own, so that who chooses by it has not seen the others'

Run it again to continue. Tokens are learnt as by default.

    python -m benchmarks.zero123plus_points --root bench_points [--parts works labels] [--time_limit 50]
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import zero123plus_measures as measures
from benchmarks.acsm_arms import OutOfTime
from benchmarks.machine import save
from benchmarks.pseudo_labels import start_world
from benchmarks.zero123plus_baselines import choose_kmeans, mean_pose, model_folder, untrained
from benchmarks.zero123plus_pictures import Row, save_picture
from benchmarks.zero123plus_tables import PARTS, summarise, table, without_animals
from pseudolabels import train_tokens
from pseudolabels.train_tokens import POINTS, PUBLISHED_LR, PUBLISHED_POINTS
from pseudolabels.zero123plus.maps import POWER, SIGMA
from pseudolabels.zero123plus.naming import FrameChoice
from pseudolabels.zero123plus.points import PointFinder
from pseudolabels.zero123plus.sources import load_model
from pseudolabels.zero123plus.token_file import FILE, TokenFile, load_model_of, weights_hash
from pseudolabels.zero123plus.tokens import most_chosen
from wildshape.cli import say
from wildshape.device import pick_device
from wildshape.files import atomic_path, read_json, write_json
from wildshape.sizes import eval_every
from wildshape.stage import progress
from wildshape.workspace import Workspace

FIRST_SEED = 60
LABELS = (10, 25, 50, 150)
DRAWS = 5
MOVED = 40
"""Animals of test whose crops are also moved."""
BASELINES = ("mean_pose", "untrained", "kmeans")
BATCH = 4


@dataclass(frozen=True)
class Arm:
    """Points that tokens give.

    Attributes:
        training: of the tokens: arms with the same share it.
        settings: of that training, as of `train_tokens.Config`.
        keep: K.
        power: by which points are read from maps, see `PointFinder`.
        frame: of the regressor.
        trained: whether the U-Net is.
    """

    training: str
    settings: tuple[tuple[str, Any], ...] = ()
    keep: int = POINTS
    power: float = POWER
    frame: FrameChoice = "auto"
    trained: bool = True


def _switched(*names: str) -> Arm:
    return Arm("_".join(names), tuple((name, True) for name in names))


OURS = Arm("ours")
SWITCHES = {
    "global_embeddings": _switched("global_embeddings"),
    # Alone it leaves no picture out: its two passes are equal, and so are its maps to those without it.
    "guidance": OURS,
    "reference_attention": _switched("reference_attention"),
    "all_on": _switched("global_embeddings", "guidance", "reference_attention"),
}
AS_PUBLISHED = Arm(
    "published", (("published", True), ("lr", PUBLISHED_LR)), PUBLISHED_POINTS, power=0.0, frame="published"
)
ARMS: dict[str, dict[str, Arm]] = {
    "works": {"ours": OURS, "untrained": Arm("untrained", trained=False)},
    "switches": {"ours": OURS, **SWITCHES},
    "sweep": {
        "ours": OURS,
        "layers 1": Arm("layers_1", (("layers", 1),)),
        "layers 2": Arm("layers_2", (("layers", 2),)),
        "noise step -1": Arm("noise_1", (("noise_step", -1),)),
        "noise step -8": Arm("noise_8", (("noise_step", -8),)),
        "noise step -20": Arm("noise_20", (("noise_step", -20),)),
        "as published": AS_PUBLISHED,
        "published lr": Arm("published_lr", (("lr", PUBLISHED_LR),)),
        "published blobs": Arm("published_blobs", (("sigma", SIGMA),)),
        "100 tokens": Arm("tokens_100", (("num_tokens", 100),)),
        "published peaks": replace(OURS, power=0.0),
        "whole maps": replace(OURS, power=1.0),
        "10 points": replace(OURS, keep=10),
        "60 points": replace(OURS, keep=60),
        "side half": Arm("side_half", (("side", 0.5),)),
        "side double": Arm("side_double", (("side", 2.0),)),
        "frame box": replace(OURS, frame="box"),
        "frame points": replace(OURS, frame="points"),
        "published regressor": replace(OURS, frame="published"),
    },
}  # fmt: skip


class World:
    """One seed's photos, what was learnt on them, and how long there is.

    Args:
        options: of the command.
        seed: of the world and of all trainings.
        until: of the monotonic clock.
    """

    def __init__(self, options: argparse.Namespace, seed: int, until: float) -> None:
        self.options, self.seed, self.until = options, seed, until
        self.device = pick_device(options.device)
        sizes = {name: getattr(options, name) for name in ("num_train", "num_val", "num_test", "num_web")}
        pipeline = start_world(options.root, options.category, seed, sizes)
        pipeline.call("segment", "prepare_data.save_masks", segmenter="simulated")
        self.workspace: Workspace = pipeline.workspace
        model = load_model(options.model, device=self.device)
        self.size = model.image_size
        self.side = options.side or train_tokens.default_side(model.noise_shape(self.size)[1])
        self.unet = weights_hash(model.unet)
        self.train = measures.read_labelled(self.workspace, "train", self.size)
        self.test = measures.read_labelled(self.workspace, "test", self.size)
        self.moved, self.thetas = measures.moved_crops(self.test.crops[:MOVED], seed)
        self.parts = measures.true_parts(self.workspace)
        self._found: dict[tuple[str, int, float], measures.Found] = {}

    def check_time(self) -> None:
        """Raises OutOfTime when there is no time left."""
        if time.monotonic() >= self.until:
            raise OutOfTime

    def training(self, arm: Arm) -> train_tokens.Config:
        """The settings of an arm's tokens."""
        options = self.options
        settings = {"num_tokens": options.num_tokens, **dict(arm.settings)}
        side = None if "published" in settings else round(self.side * settings.pop("side", 1.0))
        source = options.model
        if not arm.trained:
            source = str(untrained(source, options.root / f"untrained_{self.seed}", self.seed))
        return train_tokens.Config(
            category=options.category,
            name=f"points_{arm.training}",
            data_root=self.workspace.root,
            model=source,
            steps=options.steps,
            eval_every=eval_every(options.steps, 5),
            side=side,
            seed=self.seed,
            device=options.device,
            time_limit=max((self.until - time.monotonic()) / 60, 1e-9),
            **settings,
        )

    def tokens(self, arm: Arm) -> Path:
        """The file of an arm's tokens, learnt unless they are.

        Raises:
            OutOfTime: the time limit came first.
        """
        config = self.training(arm)
        workspace = self.workspace.sibling(name=config.name)
        path, note = (
            workspace.checkpoint_dir(train_tokens.MODEL) / FILE,
            workspace.run_dir / "benchmark.json",
        )
        facts = {name: str(value) for name, value in vars(config).items() if name != "time_limit"}
        facts["unet"] = self.unet
        if path.exists() and note.exists() and read_json(note) == facts:
            return path
        self.check_time()
        if not train_tokens.run(config, workspace)["finished"]:
            raise OutOfTime
        write_json(note, facts)
        return path

    def found(self, arm: Arm) -> measures.Found:
        """An arm's points of all animals; kept in a file.

        Raises:
            OutOfTime: the time limit came first.
        """
        key = (arm.training, arm.keep, arm.power)
        if key in self._found:
            return self._found[key]
        path = self.tokens(arm)
        cache = path.with_name(f"points_{arm.keep}_{self.options.views}_{arm.power:g}.npz")
        if cache.exists() and cache.stat().st_mtime_ns > path.stat().st_mtime_ns:
            with np.load(cache) as archive:
                found = measures.Found(*(archive[name] for name in ("train", "test", "moved")))
        else:
            found = self._find(arm, TokenFile.load(path))
            with atomic_path(cache) as temporary, temporary.open("wb") as handle:
                np.savez(handle, train=found.train, test=found.test, moved=found.moved)
        self._found[key] = found
        return found

    def _find(self, arm: Arm, tokens: TokenFile) -> measures.Found:
        chosen = int((tokens.times > 0).sum())
        if chosen < arm.keep:
            say(f"{arm.training}: {chosen} tokens were ever chosen, for {arm.keep} points")
        kept = most_chosen(tokens.times, min(arm.keep, chosen))
        model = load_model_of(tokens, self.device)
        finder = PointFinder(model, replace(tokens, kept=kept), self.options.views, self.seed, arm.power)
        crops = np.concatenate([self.train.crops, self.test.crops, self.moved])
        xy = []
        batches = range(0, len(crops), BATCH)
        for first in progress(batches, f"points {arm.training}", total=len(batches), unit="batch"):
            self.check_time()
            xy.append(finder(crops[first : first + BATCH])[0])
        return self.split(np.concatenate(xy))

    def split(self, xy: np.ndarray) -> measures.Found:
        """Points of train, test and the moved crops, one after another, apart."""
        counts = np.cumsum([len(self.train.crops), len(self.test.crops)])
        return measures.Found(*np.split(xy, counts))

    def with_finder(self, finder: measures.Finder) -> measures.Found:
        """Points by something that takes no time."""
        return measures.Found(*(finder(c) for c in (self.train.crops, self.test.crops, self.moved)))

    def baselines(self) -> dict[str, measures.Found]:
        """Points by nothing, and by colour and place."""
        crops, _, _ = train_tokens.gather(self.training(OURS), self.workspace, self.size)
        kmeans = choose_kmeans(crops.crops, self.train, POINTS, self.seed)
        say(f"k-means: place weighs {kmeans.place_weight:g} times a colour")
        return {"mean_pose": self.with_finder(mean_pose), "kmeans": self.with_finder(kmeans)}

    def measure(
        self, found: measures.Found, frame: FrameChoice = "auto"
    ) -> tuple[dict[str, Any], np.ndarray]:
        """All figures of some points, and the keypoints that they give."""
        figures, xy = measures.as_keypoints(found, self.train, self.test, self.seed, frame)
        moved = measures.equivariance(found, self.thetas, self.size)
        parts = measures.on_parts(found, self.test, self.parts)
        figures |= {"moved_px": moved["mean_px"], "moved_px_median": moved["median_px"], **parts}
        return figures, xy


def run_part(world: World, part: str) -> dict[str, Any]:
    """The figures of one part, by arm.

    Raises:
        OutOfTime: the time limit came first.
    """
    if part in ("switches", "sweep"):
        return {
            name: world.measure(world.found(arm), arm.frame)[0]
            for name, arm in ARMS[part].items()
        }  # fmt: skip
    found = {name: world.found(arm) for name, arm in ARMS["works"].items()} | world.baselines()
    if part == "labels":
        return {
            name: measures.with_few_labels(points, world.train, world.test, LABELS, DRAWS)
            for name, points in found.items()
        }
    results, rows = {}, []
    for name, points in found.items():
        results[name], keypoints = world.measure(points)
        shown = None if name == "mean_pose" else points.test
        rows.append(Row(f"{name}, PCK {results[name]['pck']:.0f}", shown, keypoints))
    out = world.workspace.pictures_dir / "zero123plus_points_compared.png"
    save_picture(out, world.workspace, world.test, rows)
    say(f"picture: {out}")
    return results


def main(argv: list[str] | None = None) -> int:
    """Run what there is time for, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--root", type=Path, default=Path("bench_points"), help="folder for worlds and runs")
    add("--category", default="horse")
    add("--model", default="small", help="small, or a folder in diffusers' layout")
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    add("--seeds", type=int, default=3)
    add("--sweep_seeds", type=int, default=1, help="seeds of the part sweep")
    add("--first_seed", type=int, default=FIRST_SEED)
    add("--steps", type=int, default=200, help="of each training of tokens")
    add("--side", type=int, default=None, help="of the attention maps; default as of train_tokens")
    add("--num_tokens", type=int, default=500)
    add("--views", type=int, default=10)
    add("--num_train", type=int, default=150, help="labelled photos that the regression is fitted on")
    add("--num_val", type=int, default=10)
    add("--num_test", type=int, default=120)
    add("--num_web", type=int, default=300, help="unlabelled photos that points are learnt on")
    add("--device", default="auto")
    add("--time_limit", "--time-limit", type=float, default=50.0, help="minutes")
    add("--out", type=Path, default=None, help="JSON file for the figures")
    options = parser.parse_args(argv)
    model_folder(options.model)
    until = time.monotonic() + 60 * options.time_limit
    figures: list[dict[str, Any]] = []
    for seed, parts in _seeds(options):
        say(f"== seed {seed}")
        row: dict[str, Any] = {"seed": seed}
        figures.append(row)
        try:
            world = World(options, seed, until)
            for part in parts:
                row[part] = run_part(world, part)
                _write(options, figures)
        except OutOfTime:
            say(f"out of time in seed {seed}: run it again to continue")
            break
    say(table(summarise(figures)))
    return 0


def _seeds(options: argparse.Namespace) -> list[tuple[int, list[str]]]:
    """Seeds and what is measured on their worlds; settings are tried on worlds of their own."""
    first = options.first_seed
    parts = [part for part in options.parts if part != "sweep"]
    found = [(seed, parts) for seed in range(first, first + options.seeds) if parts]
    if "sweep" in options.parts:
        tried = range(first - options.sweep_seeds, first)
        found += [(seed, ["sweep"]) for seed in tried]
    return found


def _write(options: argparse.Namespace, figures: list[dict[str, Any]]) -> None:
    names = ("category", "model", "first_seed", "steps", "side", "num_tokens", "views")
    names += ("num_train", "num_test", "num_web")
    settings = {name: getattr(options, name) for name in names}
    seeds = [without_animals(row) for row in figures]
    save("zero123plus_points", {"settings": settings, **summarise(figures), "seeds": seeds}, options.out)


if __name__ == "__main__":
    raise SystemExit(main())
