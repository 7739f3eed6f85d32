"""Random numbers that depend only on what they are drawn for: seed, step, purpose and row id.

Each row has a stream of its own, SplitMix64 started from a hash of its id, so that neither the order of rows nor how
they fall into batches, micro-batches or processes changes what is drawn.
"""

# Shapes: B rows, M numbers of each row.

import polars as pl
import torch
from torch import Tensor

from recdistill.data.transforms.hashing import hash_texts, splitmix64_tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 read as signed: the step of a SplitMix64 stream


def words(row_id_B: Tensor, count: int, *, purpose: str, seed: int, step: int = 0) -> Tensor:
    """64 random bits for each of ``count`` places of each row, int64 (B, M).

    Args:
        row_id_B: what the numbers are drawn for, int64 (B,).
        count: M.
        purpose: draws of different purposes are independent of each other.
        seed: of the run.
        step: of the training, or the epoch.

    Example:
        >>> words(torch.tensor([7, 8, 7]), 2, purpose="codes", seed=0)[:, 0].tolist()
        [-8444998601780889428, 7686636574884079881, -8444998601780889428]
    """
    salt = int(hash_texts(pl.Series([f"{purpose}/{seed}/{step}"]))[0])
    place_M = torch.arange(count, device=row_id_B.device) * _GOLDEN
    return splitmix64_tensor(splitmix64_tensor(row_id_B ^ salt).unsqueeze(1) + place_M)


def uniforms(row_id_B: Tensor, count: int, *, purpose: str, seed: int, step: int = 0) -> Tensor:
    """Numbers in [0, 1) with 53 random bits, float64 (B, M); arguments as `words`.

    Example:
        >>> uniforms(torch.tensor([7, 8]), 2, purpose="codes", seed=0).shape
        torch.Size([2, 2])
    """
    bits_BM = words(row_id_B, count, purpose=purpose, seed=seed, step=step)
    return ((bits_BM >> 11) & (2**53 - 1)).to(torch.float64) / 2.0**53
