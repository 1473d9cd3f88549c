"""Silhouettes and z-buffer, forward and backward, beside other renderers, and how exact they are.

    python -m benchmarks renderer
    python -m benchmarks.renderer --repeats 1500 --pytorch3d_images 1 --out renderer.json

A batch is 12 pictures of 256 x 256. Other renderers are measured where they are installed (PyTorch3D,
embreex); the JSON says which were not. Of each the best and the median of the repeats is kept, with the
load of the machine, since other work on it lengthens them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.spatial import ConvexHull
from torch import Tensor

from acsm.articulation import articulate, identity_transforms
from acsm.geometry import project_with_depth, quat_from_axis_angle
from acsm.renderer import rasterize, silhouette
from acsm.renderer.zbuffer_torch import rasterize_torch
from acsm.template import template_for
from benchmarks.machine import save
from wildshape.category import list_categories, load_category

BATCH, SIZE = 12, 256
THREADS = {"": None, ", one thread": 1}
TURNS = 10
LIMITS = {"silhouette": 0.6, "z-buffer": 7.0}  # ms, forward and backward, two cores

Draw = Callable[[Tensor], Sequence[Tensor]]


def lumpy_ball(num_faces: int) -> tuple[np.ndarray, np.ndarray]:
    """A body with four legs and a head on a ball of evenly spread points: vertices, faces."""
    count = num_faces // 2 + 2
    k = np.arange(count) + 0.5
    height, angle = 1 - 2 * k / count, np.pi * (1 + 5**0.5) * k
    ring = np.sqrt(1 - height**2)
    ball = np.stack([ring * np.cos(angle), ring * np.sin(angle), height], 1)
    faces = ConvexHull(ball).simplices
    a, b, c = (ball[faces[:, n]] for n in range(3))
    inward = np.einsum("fc,fc->f", np.cross(b - a, c - a), a) < 0
    faces[inward] = faces[inward][:, ::-1]
    radius = np.full(count, 0.45)
    limbs = [(x, -0.8, z) for x in (0.5, -0.5) for z in (0.25, -0.25)] + [(0.85, 0.5, 0.0)]
    for limb in limbs:
        towards = np.array(limb) / np.linalg.norm(limb)
        radius += 0.55 * np.exp(-14 * (1 - ball @ towards))
    return ball * radius[:, None] * [1.2, 0.8, 0.7], faces.astype(np.int64)


def views(vertices: Tensor, count: int, seed: int = 0) -> Tensor:
    """``count`` random weak-perspective views [count, V, 3] of vertices [V, 3] or [count, V, 3]."""
    rng = torch.Generator().manual_seed(seed)
    camera = torch.zeros(count, 7, dtype=vertices.dtype)
    camera[:, 0] = 0.7
    camera[:, 1:3] = 0.1 * torch.rand(count, 2, generator=rng) - 0.05
    camera[:, 3:] = torch.nn.functional.normalize(torch.randn(count, 4, generator=rng), dim=1)
    return project_with_depth(vertices.expand(count, *vertices.shape[-2:]), camera)


def posed_views(category: str, count: int, seed: int = 0) -> tuple[Tensor, np.ndarray]:
    """Random views of a category's template, each part turned by some 35 degrees about a random axis."""
    template = template_for(load_category(category))
    rng = torch.Generator().manual_seed(seed)
    parts = identity_transforms(count, template.num_parts, dtype=torch.float64)
    axes = torch.randn(count, template.num_parts, 3, generator=rng, dtype=torch.float64)
    turns = 0.6 * torch.randn(count, template.num_parts, generator=rng, dtype=torch.float64)
    parts[..., 4:] = quat_from_axis_angle(torch.nn.functional.normalize(axes, dim=-1), turns)
    moved = articulate(
        torch.tensor(template.vertices),
        torch.tensor(template.membership),
        parts,
        torch.tensor(template.part_centres),
        template.part_parents,
    )
    return views(moved, count, seed), template.faces


@dataclass
class Times:
    """Seconds of the repeats of one way, forward and both ways, and the load before them."""

    forward: list[float] = field(default_factory=list)
    both: list[float] = field(default_factory=list)
    load: list[float] = field(default_factory=list)

    def summary(self, images: int, backward: bool = True) -> dict[str, Any]:
        """Milliseconds of a batch of 12, best and median, scaled where there were fewer images."""
        scale = 1000 * BATCH / images

        def of(seconds: list[float]) -> dict[str, float]:
            return {
                "best": round(scale * min(seconds), 3),
                "median": round(scale * statistics.median(seconds), 3),
            }

        load = max(self.load, default=None)
        found: dict[str, Any] = {"images": images, "repeats": len(self.forward), "load": load}
        found["forward_ms"] = of(self.forward)
        return {**found, "forward_backward_ms": of(self.both)} if backward else found


def time_turn(times: Times, draw: Draw, vertices: Tensor, repeats: int, backward: bool = True) -> None:
    """Draw some times more; the first time of several does not count, in which kernels are compiled."""
    if hasattr(os, "getloadavg"):
        times.load.append(os.getloadavg()[0])
    x = vertices.clone().requires_grad_(backward)
    grads: list[Tensor] = []
    for repeat in range(repeats + (repeats > 1)):
        x.grad = None
        start = time.perf_counter()
        found = draw(x)
        drawn = time.perf_counter() - start
        grads = grads or [torch.rand_like(part) for part in found if backward]
        start = time.perf_counter()
        if backward:
            torch.autograd.backward(list(found), grads)
        if repeat or repeats == 1:
            times.forward.append(drawn)
            times.both.append(drawn + time.perf_counter() - start)


def timed(draw: Draw, vertices: Tensor, repeats: int, backward: bool = True) -> dict[str, Any]:
    """One way by itself; see `Times.summary`."""
    times = Times()
    time_turn(times, draw, vertices, repeats, backward)
    return times.summary(len(vertices), backward)


@contextmanager
def threads(number: int | None) -> Iterator[None]:
    """Let the compiled renderers use so many threads; None: as many as they would."""
    name = "WILDSHAPE_RENDER_THREADS"
    before = os.environ.get(name)
    if number is not None:
        os.environ[name] = str(number)
    try:
        yield
    finally:
        os.environ.pop(name, None)
        if before is not None:
            os.environ[name] = before


def ours(vertices: Tensor, faces: np.ndarray, repeats: int) -> dict[str, Any]:
    """This package's renderers, compiled and in PyTorch.

    The compiled ones take turns: a machine that is slow for a moment is slow for all of them.
    """
    index = torch.as_tensor(faces)
    few = max(3, repeats // 20)
    ways: dict[str, tuple[Draw, int]] = {
        "silhouette": (lambda x: [silhouette(x, faces, SIZE)], repeats),
        "z-buffer": (lambda x: rasterize(x, faces, SIZE)[1:], repeats // 3),
    }
    found = {name + label: Times() for label in THREADS for name in ways}
    for _ in range(TURNS):
        for label, number in THREADS.items():
            with threads(number):
                for name, (draw, count) in ways.items():
                    time_turn(found[name + label], draw, vertices, max(2, count // TURNS))
    return {
        **{name: times.summary(len(vertices)) for name, times in found.items()},
        "silhouette, PyTorch": timed(lambda x: [silhouette(x, faces, SIZE, "torch")], vertices, few),
        "z-buffer, PyTorch": timed(lambda x: rasterize_torch(x, index, SIZE)[1:], vertices, few),
    }


def pytorch3d(vertices: Tensor, faces: np.ndarray, images: int, soft_images: int) -> dict[str, Any]:
    """PyTorch3D's rasteriser: one face a pixel, and soft silhouettes of ten. Few images: it is slow."""
    from pytorch3d.renderer.blending import BlendParams, sigmoid_alpha_blend
    from pytorch3d.renderer.mesh import rasterize_meshes
    from pytorch3d.renderer.mesh.rasterizer import Fragments
    from pytorch3d.structures import Meshes

    index = torch.as_tensor(faces)

    def fragments(x: Tensor, blur: float, layers: int) -> tuple[Tensor, ...]:
        flipped = x * x.new_tensor([-1.0, -1.0, 1.0])  # its x runs left and its y up
        meshes = Meshes(flipped, index.expand(len(x), -1, -1))
        return rasterize_meshes(meshes, SIZE, blur, layers, perspective_correct=False)

    def hard(x: Tensor) -> list[Tensor]:
        _, depth, shares, _ = fragments(x, 0.0, 1)
        return [depth, shares]

    def soft(x: Tensor) -> list[Tensor]:
        blend = BlendParams(sigma=1e-4, gamma=1e-4)
        found = fragments(x, float(np.log(1 / 1e-4 - 1)) * blend.sigma, 10)
        colours = x.new_ones(*found[0].shape, 3)
        return [sigmoid_alpha_blend(colours, Fragments(*found), blend)[..., 3]]

    results = {"PyTorch3D, one face a pixel": timed(hard, vertices[:images], 3)}
    if soft_images:
        results["PyTorch3D, soft silhouette, 10 faces"] = timed(soft, vertices[:soft_images], 2)
    return results


def embree(vertices: Tensor, faces: np.ndarray, repeats: int) -> dict[str, Any]:
    """Embree's ray tracer, one ray a pixel: face ids and depth; a scene is built for each image."""
    from embreex import rtcore_scene
    from embreex.mesh_construction import TriangleMesh

    centre = (2 * np.arange(SIZE) + 1) / SIZE - 1
    origins = np.zeros((SIZE * SIZE, 3), np.float32)
    origins[:, 0], origins[:, 1] = np.tile(centre, SIZE), np.repeat(centre, SIZE)
    away = np.tile(np.float32([0, 0, 1]), (SIZE * SIZE, 1))
    index = faces.astype(np.int32)

    def draw(x: Tensor) -> list[Tensor]:
        found = []
        for points in x.numpy():
            scene = rtcore_scene.EmbreeScene()
            TriangleMesh(scene, points, index)
            found.append(scene.run(origins, away, output=True)["primID"])
        return [torch.as_tensor(np.stack(found))]

    return {"Embree, rays": timed(draw, vertices.float(), max(3, repeats // 20), backward=False)}


def peers(vertices: Tensor, faces: np.ndarray, arguments: argparse.Namespace) -> dict[str, Any]:
    """Other renderers, or why they are missing."""
    found: dict[str, Any] = {}
    measures = {
        "PyTorch3D": lambda: pytorch3d(
            vertices, faces, arguments.pytorch3d_images, arguments.soft_images if len(faces) < 5000 else 0
        ),
        "embreex": lambda: embree(vertices, faces, arguments.repeats),
    }
    for name, measure in measures.items():
        try:
            found |= measure()
        except ImportError as error:
            found[name] = {"missing": str(error).splitlines()[0]}
    return found


def border_error(categories: Sequence[str], images: int) -> dict[str, Any]:
    """Mean distance from 16 x 16 samples on border pixels: exact coverage, 2 x 2 samples, 1 sample."""
    rows: dict[str, Any] = {}
    for category in categories:
        vertices, faces = posed_views(category, images)
        exact = silhouette(vertices.numpy(), faces, SIZE)
        fine, two, one = (sampled(vertices.numpy(), faces, by) for by in (16, 2, 1))
        border = (fine > 0) & (fine < 1)
        rows[category] = {
            "border_pixels": int(border.sum()),
            "exact": round(float(np.abs(exact - fine)[border].mean()), 5),
            "samples_2x2": round(float(np.abs(two - fine)[border].mean()), 5),
            "samples_1": round(float(np.abs(one - fine)[border].mean()), 5),
        }
    return rows


def sampled(vertices: np.ndarray, faces: np.ndarray, by: int) -> np.ndarray:
    """Share of by x by samples of each pixel that see a face."""
    fine = np.stack([rasterize(one[None], faces, SIZE * by).mask[0] for one in vertices])
    return fine.reshape(len(fine), SIZE, by, SIZE, by).mean((2, 4))


def growth(repeats: int) -> dict[str, Any]:
    """Silhouettes of more faces, and of larger pictures: best milliseconds, forward and backward."""

    def measure(num_faces: int, size: int) -> float:
        points, faces = lumpy_ball(num_faces)
        x = views(torch.tensor(points, dtype=torch.float32), BATCH)
        return timed(lambda v: [silhouette(v, faces, size)], x, repeats)["forward_backward_ms"]["best"]

    return {
        "faces_at_256": {str(n): measure(n, SIZE) for n in (1280, 2560, 5120, 10000, 20000)},
        "sizes_at_1280_faces": {str(s): measure(1280, s) for s in (64, 128, 256, 512)},
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints and writes JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--faces", type=int, nargs="+", default=[1280, 10000])
    parser.add_argument("--pytorch3d_images", type=int, default=1, help="images of the batch, scaled to 12")
    parser.add_argument("--soft_images", type=int, default=1, help="the same for soft silhouettes; 0: none")
    parser.add_argument("--error_images", type=int, default=3)
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    figures: dict[str, Any] = {"batch": BATCH, "size": SIZE, "limits_ms": LIMITS, "timings": {}}
    for num_faces in arguments.faces:
        points, faces = lumpy_ball(num_faces)
        vertices = views(torch.tensor(points, dtype=torch.float32), BATCH)
        rows = {**ours(vertices, faces, arguments.repeats), **peers(vertices, faces, arguments)}
        figures["timings"][f"{num_faces} faces"] = rows
        for name, row in rows.items():
            shown = row.get("missing") or row.get("forward_backward_ms") or row["forward_ms"]
            print(f"{num_faces:6} faces, {name}: {shown}", flush=True)
    figures["growth_best_ms"] = growth(arguments.repeats)
    figures["border_error"] = border_error(list_categories(), arguments.error_images)
    print(figures["growth_best_ms"], figures["border_error"], sep="\n")
    print(save("renderer", figures, arguments.out))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
