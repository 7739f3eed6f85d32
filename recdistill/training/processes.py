"""Several processes that train together: who am I, which rows are mine, and sums over all."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from recdistill.data.batch import Batch
from recdistill.data.reader import take, take_anchors
from recdistill.data.transforms.hashing import splitmix64_tensor
from recdistill.publish import leftovers, published, remove

Result = TypeVar("Result")


def rank() -> int:
    """The number of this process; 0 without others."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Wait for all others."""
    if world() > 1:
        dist.barrier()


def in_turn(action: Callable[[], Result]) -> Result:
    """The action's result in every process; the first one acts alone, so that the others find what it has left."""
    found = action() if rank() == 0 else None
    barrier()
    return action() if found is None else found


def agreed(value: Result) -> Result:
    """The first process's value, in every process."""
    if world() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


@contextmanager
def published_together(folder: Path) -> Iterator[Path]:
    """`published` for a folder that all processes write, and nobody but these; what killed ones have left goes."""
    with published(folder) if rank() == 0 else nullcontext(folder) as mine:
        work = agreed(mine)
        if rank() == 0:
            for left in leftovers(folder):
                remove(left)
            work.mkdir()
        barrier()
        yield work
        barrier()
    barrier()


def add_up(tensor: Tensor) -> Tensor:
    """The sum over processes, in place."""
    if world() > 1:
        dist.all_reduce(tensor)
    return tensor


def share_of(batch: Batch) -> Batch:
    """This process's rows of a batch: every n-th one, or whole lists where a term compares the rows of lists.

    Of anchors it has every n-th one, and all candidates.
    """
    if world() == 1:
        return batch
    if batch.candidates is not None:
        return take_anchors(batch, torch.arange(rank(), batch.candidates.anchors, world()))
    if batch.group_B is None:
        return take(batch, torch.arange(rank(), len(batch), world()))
    owner_B = torch.remainder(splitmix64_tensor(batch.group_B), world())
    return take(batch, torch.nonzero(owner_B == rank()).flatten())
