"""The processes that one training is spread over, each with a rank; where there is one only, all of this is a no-op.

Not what starts them, which is `flywheel.learning.launch`. What the ranks must do together (stop, save a checkpoint) is
decided by the first of them: clocks differ, and a rank that saves or stops alone leaves the others waiting for ever.
"""

from __future__ import annotations

from typing import Any


def count() -> int:
    """How many processes train together."""
    distributed = _distributed()
    return 1 if distributed is None else int(distributed.get_world_size())


def is_first() -> bool:
    """Whether this is the process that writes."""
    distributed = _distributed()
    return distributed is None or distributed.get_rank() == 0


def agree(*flags: bool) -> tuple[bool, ...]:
    """The first rank's flags, on every rank."""
    distributed = _distributed()
    if distributed is None:
        return flags
    import torch

    told = torch.tensor(flags, dtype=torch.int32, device=_device())
    distributed.broadcast(told, src=0)
    return tuple(bool(flag) for flag in told.tolist())


def mean(total: Any, weight: Any) -> Any:
    """The loss whose gradient, averaged over the ranks, is that of the mean over all of them: `total`, a rank's summed
    loss, over what all ranks' `weight`s come to. For one process that is total / weight."""
    distributed = _distributed()
    if distributed is None:
        return total / weight
    everyones = weight.detach().clone()
    distributed.all_reduce(everyones)
    return total * distributed.get_world_size() / everyones


def wait() -> None:
    """Go on once every rank has come here."""
    distributed = _distributed()
    if distributed is not None:
        distributed.barrier()


def _distributed() -> Any:
    """torch.distributed where a group of processes was made, else None."""
    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed
    return None


def _device() -> Any:
    from accelerate import PartialState

    return PartialState().device
