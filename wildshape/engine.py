"""Where Map stages run: in this process, or on a Ray cluster's workers. None of it changes a result."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from wildshape.errors import UserError


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """The engine and its workers; a command whose `Config` derives from it has the flags."""

    engine: Literal["local", "ray"] = "local"
    """Where the stage runs: local, in this process, or ray, on the workers of a Ray cluster."""
    num_workers: int | None = None
    """Workers of --engine ray, by default one a GPU or a core; with local, loader processes."""
    ray_address: str | None = None
    """HOST:PORT of a running cluster's head, or auto; by default Ray is started on this machine alone."""
    gpus_per_worker: float | None = None
    """GPUs that each worker of --engine ray takes; by default 1 if the stage computes on one."""

    @property
    def engine_options(self) -> EngineOptions:
        """These settings alone, checked.

        Raises:
            UserError: if they do not fit together.
        """
        if self.num_workers is not None and self.num_workers < (self.engine == "ray"):
            least = "1 worker" if self.engine == "ray" else "0"
            raise UserError(f"--num_workers: expected at least {least}; found {self.num_workers}")
        if self.gpus_per_worker is not None and self.gpus_per_worker < 0:
            raise UserError(f"--gpus_per_worker: expected at least 0; found {self.gpus_per_worker}")
        for name in ("ray_address", "gpus_per_worker"):
            if self.engine != "ray" and getattr(self, name) is not None:
                raise UserError(f"--{name}: expected together with --engine ray; found the local engine")
        return EngineOptions(**{field.name: getattr(self, field.name) for field in fields(EngineOptions)})

    def loaders(self, workers: int | None, unset: int | None = None) -> int | None:
        """Loader processes of this process or of each Ray worker.

        Args:
            workers: A command's `--workers`.
            unset: Its default, which in this process leaves the number to `--num-workers`.
        """
        return self.num_workers if workers == unset and self.engine == "local" else workers
