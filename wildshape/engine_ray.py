"""Map stages on Ray Data: the same stage classes, built once in every worker of a cluster.

The unit of work is a shard. The input table lies as Parquet beside the shards, a row group for each of
them; a worker reads the row group, runs the stage over it and writes the shard's file, whole or not at
all. Ray Data hands out the shards and hands those of a dead worker to another one. Nothing but names
and counts passes through the cluster's object store, so the files must lie where every worker sees them.

Imported when used: pip install "wildshape[ray]".
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import platform
import re
import shutil
import socket
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from wildshape import map_stage
from wildshape.engine import EngineOptions
from wildshape.errors import UserError
from wildshape.map_stage import MapOptions, MapStage, progress
from wildshape.tables import Table, read_table, write_table

MAX_ATTEMPTS = 4
_OBJECT_STORE = 256 * 1024 * 1024  # only names and counts pass through it
_MAX_BLOCKS = 4096
_MAX_LOADERS = 8

Job = dict[str, Any]
Work = Callable[[Job], Job]


@dataclass(frozen=True)
class Workers:
    """The workers of one run.

    Attributes:
        count: How many.
        gpus: GPUs of each.
        cpus: CPUs of the whole cluster.
    """

    count: int
    gpus: float
    cpus: int

    @property
    def loaders(self) -> int:
        """Loader processes that suit each: those that keep a GPU fed, none where there is no GPU."""
        return max(0, min(self.cpus // self.count - 1, _MAX_LOADERS)) if self.gpus else 0


def _import_ray() -> Any:
    # Read by Ray when it is imported: no reports to its makers, no chatter of its C++ side.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray.data
    except ImportError as error:
        raise UserError('--engine ray needs Ray; run: pip install "wildshape[ray]"') from error
    return ray


@contextmanager
def connected(options: EngineOptions) -> Iterator[Any]:
    """Ray, started or connected to; what was started here is stopped, a running one is left running.

    Raises:
        UserError: if Ray is not installed, or there is no cluster at the address.
    """
    ray = _import_ray()
    if ray.is_initialized():
        yield ray
        return
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if options.ray_address is None:
        settings |= {
            "address": "local",
            "num_cpus": max(_cores(), options.num_workers or 1),
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE,
        }
    else:
        settings["address"] = options.ray_address
    try:
        if options.ray_address is not None:
            _check_answers(options.ray_address)
        with _quiet():
            ray.init(**settings)
    except (OSError, RuntimeError, ValueError) as error:
        if options.ray_address is None:
            raise
        raise UserError(
            f"--ray_address: expected a Ray cluster at {options.ray_address}; found none that answers "
            f"({str(error).strip().splitlines()[0]}); start one with: ray start --head"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Ray itself would try for minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


@contextmanager
def _quiet() -> Iterator[None]:
    """Ray's C++ side writes to the terminal when it starts, whatever its log level."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_workers(resources: Mapping[str, float], options: EngineOptions, device: str) -> Workers:
    """How many workers a cluster is asked for, and with how many GPUs each.

    Args:
        resources: What the cluster has: CPU, GPU.
        options: What the user asks for.
        device: Where the stage computes: auto, cpu or cuda.

    Raises:
        UserError: if the cluster has not as much.
    """
    cpus, cards = int(resources.get("CPU", 0)), resources.get("GPU", 0.0)
    gpus = options.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if device.startswith("cuda") or (device == "auto" and cards) else 0.0
    room = min(cpus, int(cards / gpus)) if gpus else cpus
    count = options.num_workers or max(room, 1)
    if count > room:
        wanted = f"{count} CPUs" + (f" and {count * gpus:g} GPUs" if gpus else "")
        raise UserError(
            f"--engine ray: expected {wanted} for {count} workers; found {cpus} CPUs and {cards:g} GPUs in "
            f"the cluster; use fewer --num_workers{', or --device cpu' if gpus else ''}"
        )
    return Workers(count, gpus, cpus)


class _Actor:
    """What Ray Data builds once in each worker: runs jobs, and brings home errors that are the user's."""

    def __init__(self, factory: Callable[[], Work], folder: Path, scratch: Path) -> None:
        self._factory, self._folder, self._scratch = factory, folder, scratch
        self._work: Work | None = None

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, list[bytes]]:
        return {"result": [pickle.dumps(self._run(json.loads(str(text)))) for text in batch["job"]]}

    def _run(self, job: Job) -> Job | UserError | OSError:
        try:
            if self._work is None:
                if self._folder.is_dir():
                    os.chdir(self._folder)  # so that relative names mean what they meant to the user
                self._note_attempt(job)
                self._work = self._factory()
            else:
                self._note_attempt(job)
            return self._work(job)
        except (UserError, OSError) as error:
            return error

    def _note_attempt(self, job: Job) -> None:
        """Count the workers that began a job, so that one that kills them all is given up."""
        if not self._scratch.is_dir():
            raise UserError(
                f"expected every worker to see {self._scratch.parent}; the one on {platform.node()} does "
                "not: keep the data root on a file system that all machines of the cluster share"
            )
        path = self._scratch / f"attempts-{job['key']}"
        with open(path, "ab") as handle:
            handle.write(b".")
        if path.stat().st_size > MAX_ATTEMPTS:
            raise UserError(
                f"expected a worker to live through {job['title']}; {MAX_ATTEMPTS} died (out of memory?); "
                "use a smaller --batch_size or fewer --num_workers, and run the same command again"
            )


def run_jobs(
    ray: Any,
    factory: Callable[[], Work],
    jobs: Sequence[Job],
    workers: Workers,
    scratch: Path,
) -> Iterator[Job]:
    """Run jobs on workers, and yield their results as they come.

    Args:
        ray: As `connected` gives it.
        factory: Makes, in each worker, what runs a job; picklable.
        jobs: JSON-able, each with a distinct `key` and a `title` for people.
        workers: How many, and what each needs.
        scratch: A folder that all of them see.

    Raises:
        UserError, OSError: as raised in a worker.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1  # one job may take hours
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    items = [{"job": json.dumps(job)} for job in jobs]
    count = min(workers.count, len(items))
    results = ray.data.from_items(items, override_num_blocks=min(len(items), _MAX_BLOCKS)).map_batches(
        _Actor,
        fn_constructor_args=(factory, Path.cwd(), scratch),
        batch_size=1,
        num_cpus=1,
        num_gpus=workers.gpus or None,
        compute=ray.data.ActorPoolStrategy(min_size=count, max_size=count, max_tasks_in_flight_per_actor=1),
    )
    try:
        for batch in results.iter_batches(batch_size=None, prefetch_batches=0):
            for text in batch["result"]:
                result = pickle.loads(text)
                if isinstance(result, Exception):
                    raise result
                yield result
    except ray.exceptions.RayError as error:
        missing = re.search(r"No module named '([\w.]+)'", str(error))
        if missing is None:
            raise
        raise UserError(
            "expected the same packages on every machine of the cluster as here; found a worker without "
            f"{missing[1]}; install wildshape there, with the same extras"
        ) from error


@contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """A folder for one run's inputs, emptied before and removed after it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class ShardWork:
    """Fills shards with a stage.

    Attributes:
        stage: The stage.
        rows: File of the input table, a row group for each shard.
        rows_kind: Its kind.
        kind: The output table's kind.
        meta: Facts stored with it.
        options: How to run.
    """

    stage: MapStage
    rows: Path
    rows_kind: str
    kind: str
    meta: Mapping[str, Any]
    options: MapOptions

    def __call__(self, job: Job) -> Job:
        """Fill one shard, unless a worker that died afterwards has done so."""
        shard = Path(job["shard"])
        if not shard.exists():
            rows = read_table(self.rows, self.rows_kind, group=job["group"])
            map_stage.fill_shards(self.stage, rows, [0], {0: shard}, self.kind, self.meta, self.options)
        return {"rows": job["rows"]}


@dataclass(frozen=True)
class ShardFactory:
    """Makes the `ShardWork` of a worker, and in it the stage."""

    factory: Callable[[], MapStage]
    rows: Path
    rows_kind: str
    kind: str
    meta: Mapping[str, Any]
    options: MapOptions

    def __call__(self) -> ShardWork:
        """Build the stage, once a worker."""
        return ShardWork(self.factory(), self.rows, self.rows_kind, self.kind, self.meta, self.options)


def fill_shards(
    factory: Callable[[], MapStage],
    rows: Table,
    todo: Sequence[int],
    names: Mapping[int, Path],
    kind: str,
    meta: Mapping[str, Any],
    options: MapOptions,
) -> None:
    """As `wildshape.map_stage.fill_shards`, on the workers of a cluster.

    Raises:
        UserError: if there is no such cluster, a worker sees no data root, or the stage raises it.
    """
    size = options.shard_size
    sizes = {start: min(size, len(rows) - start) for start in todo}
    bar = progress(
        title=options.title, total=len(rows), unit="row", initial=len(rows) - sum(sizes.values())
    )
    with connected(options.engine) as ray, scratch_folder(names[todo[0]].parent / "ray") as scratch:
        workers = choose_workers(ray.cluster_resources(), options.engine, options.device)
        if options.workers is None:
            options = replace(options, workers=workers.loaders)
        # A new name every time: a stale copy on another machine's own disk is not taken for it.
        table = scratch / f"rows-{uuid.uuid4().hex[:12]}.parquet"
        write_table(rows, table, group_rows=size)
        jobs = [
            {
                "key": start,
                "title": f"rows {start} to {start + sizes[start] - 1} of {options.title or 'the stage'}",
                "group": start // size,
                "shard": str(names[start]),
                "rows": sizes[start],
            }
            for start in todo
        ]
        make = ShardFactory(factory, table, rows.kind, kind, meta, replace(options, shard_size=size))
        with bar:
            for result in run_jobs(ray, make, jobs, workers, scratch):
                bar.update(result["rows"])
