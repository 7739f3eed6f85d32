"""The embedded log of preferences: who took what, and nothing else; the raw material of lists of items.

Users and items have tastes of rank 6. A user takes 26 items, each once, with odds ``exp(SHARP * <user, item>)``,
where the inner product has variance 1; the order is random, so that the splits are alike:

    part 0  train  14 items of each user
    part 1  valid   4
    part 2  test    8

So few of them say little about a taste of six numbers, while the neighbours of neighbours say more: that is what a
graph convolution is good for. Columns that describe an item (its genre, its tempo) or a user (the region) follow from
the tastes, so that a tower can place items that nobody has taken yet.
"""

# Shapes: U users, I items, K rank of the tastes, T items that each user takes.

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recdistill.publish import published

RANK = 6
SHARP = 3.0  # how much more a user takes what suits
TRAIN, VALID, TEST = 14, 4, 8
TAKEN = TRAIN + VALID + TEST
ITEMS_PER_USER = 4 / 3
GENRES, REGIONS = 12, 8


def simulate_preferences(
    path: Path, *, rows: int, seed: int = 0, progress: Callable[[int], None] = lambda _: None
) -> None:
    """Write a log of preferences with about ``rows`` rows, 26 for each user.

    Args:
        path: the parquet file to write; it appears only when it is complete.
        rows: number of events; the next lower multiple of 26.
        seed: the same seed writes the same bytes.
        progress: called with the number of rows done.
    """
    users = max(rows // TAKEN, 2)
    items = max(round(users * ITEMS_PER_USER), 2 * TAKEN)
    rng = np.random.default_rng([seed, 11])
    user_UK, item_IK = (rng.normal(0, RANK**-0.25, (count, RANK)) for count in (users, items))
    region_U = (user_UK @ rng.normal(size=(RANK, REGIONS))).argmax(1)
    genre_I = (item_IK @ rng.normal(size=(RANK, GENRES))).argmax(1)
    tempo_I = item_IK @ rng.normal(size=RANK) / RANK**0.5 + rng.normal(0, 0.2, items)
    taken_UT = np.empty((users, TAKEN), np.int64)
    for user in range(users):
        odds_I = SHARP * (item_IK @ user_UK[user]) + rng.gumbel(size=items)
        taken_UT[user] = rng.permutation(np.argpartition(-odds_I, TAKEN)[:TAKEN])
        progress(TAKEN)
    user_N, item_N = np.repeat(np.arange(users), TAKEN), taken_UT.ravel()
    part_N = np.tile(np.repeat([0, 1, 2], [TRAIN, VALID, TEST]), users)
    table = pa.table(
        {
            "user_id": user_N,
            "item_id": item_N,
            "part": part_N,
            "region": region_U[user_N],
            "genre": genre_I[item_N],
            "tempo": tempo_I[item_N],
        }
    )
    with published(path) as work:
        pq.write_table(table, work)
