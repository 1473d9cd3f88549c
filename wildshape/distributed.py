"""Training one network in several processes: each takes its slice of every batch, torchrun starts them.

A step is that of one process at the same batch: gradients are averaged by DistributedDataParallel, the
statistics of batch normalisation are those of the whole batch, and losses that divide by what a batch
counts do so by `shared_count`.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from wildshape.errors import UserError
from wildshape.processes import is_first_process, process_count

# The others wait while the first process measures and writes.
_TIMEOUT = timedelta(hours=2)


def together() -> bool:
    """Whether this process trains together with others just now."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def join_processes(device: torch.device) -> None:
    """Meet the processes that torchrun started, once; alone it does nothing.

    Args:
        device: Where this process computes; NCCL between GPUs, gloo between CPUs.
    """
    if process_count() == 1 or dist.is_initialized():
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_TIMEOUT)
    atexit.register(_part)


def _part() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def own_slice(batch_size: int) -> slice:
    """Which of a batch's items this process takes.

    Raises:
        UserError: the batch cannot be divided evenly.
    """
    if not together():
        return slice(0, batch_size)
    count = dist.get_world_size()
    if batch_size % count:
        raise UserError(
            f"--batch_size: expected a multiple of the {count} processes that share a batch; "
            f"found {batch_size}"
        )
    share = batch_size // count
    return slice(dist.get_rank() * share, (dist.get_rank() + 1) * share)


def mean_over_processes(values: Sequence[float], device: torch.device) -> list[float]:
    """Numbers that every process has, each averaged over the processes; the same on all of them."""
    if not together():
        return list(values)
    kind = torch.float32 if device.type == "mps" else torch.float64
    shared = torch.tensor(list(values), dtype=kind, device=device)
    dist.all_reduce(shared)
    return (shared / dist.get_world_size()).tolist()


def mean_scalars(scalars: Mapping[str, float]) -> dict[str, float]:
    """Logged numbers averaged by name over the processes that have them; the same on all processes."""
    if not together():
        return dict(scalars)
    every = every_process(dict(scalars))
    names = list(dict.fromkeys(name for found in every for name in found))
    having = {name: [found[name] for found in every if name in found] for name in names}
    return {name: sum(values) / len(values) for name, values in having.items()}


def every_process(value: Any) -> list[Any]:
    """What every process has, picklable, in the processes' order; the same on all of them."""
    if not together():
        return [value]
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, value)
    return every


def shared_count(count: Tensor, least: float = 1.0) -> Tensor:
    """What a loss divides by: a count, at least ``least``; without a gradient.

    Of several processes it is the count of the whole batch divided by their number, so that slices' sums
    divided by it have the whole batch's quotient as their mean. Means over a batch's items need none of it.
    """
    if not together():
        return count.detach().clamp(min=least)
    shared = count.detach().clone()
    dist.all_reduce(shared)
    return shared.clamp(min=least) / dist.get_world_size()


def told_by_first(value: Any) -> Any:
    """The first process' value, on every process, which wait for one another; an exception is raised.

    Args:
        value: What the first process has, picklable; ignored on the others.
    """
    if together():
        box = [value if is_first_process() else None]
        dist.broadcast_object_list(box, src=0)
        value = box[0]
    if isinstance(value, Exception):
        raise value
    return value


class _EveryRow(torch.autograd.Function):
    """A row [n] of each process -> all rows [processes, n], with gradients back to each."""

    @staticmethod
    def forward(ctx: Any, row: Tensor) -> Tensor:
        rows = row.new_zeros(dist.get_world_size(), len(row))
        rows[dist.get_rank()] = row
        dist.all_reduce(rows)
        return rows

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total[dist.get_rank()]


class GatheredBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation by the statistics of all processes' slices, which are equally large.

    `torch.nn.SyncBatchNorm` does this on GPUs alone. Parameters and buffers are those of a BatchNorm.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least [N, C]; found {list(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """[N, C, ...] -> the same shape."""
        if not (self.training and together()):
            return super().forward(input)
        self._check_input_dim(input)
        x = input.float() if input.dtype in (torch.bfloat16, torch.float16) else input
        places = [0, *range(2, x.dim())]
        variance, mean = torch.var_mean(x, places, correction=0)
        means, variances = _EveryRow.apply(torch.cat((mean, variance))).chunk(2, dim=1)
        mean = means.mean(0)
        variance = (variances + (means - mean).square()).mean(0)
        self._remember(mean.detach(), variance.detach(), len(means) * x.numel() // len(mean))
        scale = torch.rsqrt(variance + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        shift = -mean * scale
        if self.bias is not None:
            shift = shift + self.bias
        shape = (1, -1, *[1] * (x.dim() - 2))
        return (x * scale.view(shape) + shift.view(shape)).to(input.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, count: int) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        unbiased = variance * (count / max(count - 1, 1))
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)


def gather_batch_norms(model: nn.Module) -> None:
    """Make every BatchNorm inside a model take the statistics of the whole batch; names stay."""
    for name, child in model.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm) and not isinstance(child, GatheredBatchNorm):
            setattr(model, name, _gathered(child))
        else:
            gather_batch_norms(child)


def _gathered(norm: nn.modules.batchnorm._BatchNorm) -> nn.Module:
    device = next(iter([*norm.parameters(), *norm.buffers()]), torch.empty(0)).device
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(norm)
    new = GatheredBatchNorm(
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
    )
    # The very same tensors: an optimiser may hold them already.
    new._parameters.update(norm._parameters)
    new._buffers.update(norm._buffers)
    return new.train(norm.training)


class _Loss(nn.Module):
    """A task's loss as the forward pass of a module, which DistributedDataParallel wants."""

    def __init__(self, task: Any) -> None:
        super().__init__()
        self.model, self._task = task.model, task

    def forward(self, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, float]]:
        return self._task.loss(batch, step)


LossOf = Callable[[dict[str, Tensor], int], tuple[Tensor, dict[str, float]]]


def shared_loss(task: Any) -> LossOf:
    """A task's loss of this process' slice, whose gradients are averaged over the processes.

    All start from the first process' weights. Where a task's `parameters_rest(step)` says so, some of its
    parameters have no gradient in that step, on all processes alike.
    """
    if not together():
        return task.loss
    gather_batch_norms(task.model)
    parameters_rest = getattr(task, "parameters_rest", lambda step: False)
    whole = _Loss(task)
    made: dict[bool, nn.Module] = {}

    def loss(batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, float]]:
        rest = bool(parameters_rest(step))
        if rest not in made:
            # Looking for parameters without a gradient costs time, and is warned of where there are none.
            made.clear()
            made[rest] = nn.parallel.DistributedDataParallel(whole, find_unused_parameters=rest)
        return made[rest](batch, step)

    return loss
