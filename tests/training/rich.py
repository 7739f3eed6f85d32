"""A log with sequences, lists and weights, and what its members answer by plain embeddings, row by row."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import yaml
from torch import Tensor

from recdistill.data.batch import Batch, Jagged
from recdistill.data.encode import encode
from recdistill.nets.inputs import Outputs
from recdistill.spec.features import FeatureSpec
from recdistill.training.cast import Cast
from tests.conftest import Small

SPEC: dict[str, Any] = {
    "row_id": "key",
    "time": "now",
    "split": {"column": "part", "train": [0, 0], "valid": [1, 1], "test": [2, 2]},
    "serving": {
        "item": {"type": "id", "min_count": 1},
        "city": {"type": "categorical"},
        "clicks": {"type": "sequence", "vocabulary": "item", "times": "then", "max_length": 4},
        "tags": {"type": "list", "weights": "strengths"},
        "price": {"type": "numeric"},
    },
    "post_event": {"y": "binary", "other": "binary", "after": {"type": "sequence", "hash": 20}, "dwell": "numeric"},
}
PRIVILEGED = ["after", "dwell"]
POOL = {"clicks": {"target_attention": {"target": "item", "layers": [4]}}}
ROWS = 900


def raw(rows: int = ROWS, seed: int = 0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    clicks, tags, after = (
        [rng.integers(1, high, n).tolist() for n in rng.integers(0, longest, rows)]
        for longest, high in ((7, 30), (4, 9), (5, 50))
    )
    now = np.arange(rows) * 1000 + 10**6
    return pl.DataFrame(
        {
            "key": np.arange(rows) + 10_000 * seed, "item": rng.integers(1, 30, rows), "city": rng.integers(0, 5, rows),
            "clicks": clicks, "now": now, "tags": tags, "after": after, "dwell": rng.normal(size=rows),
            "then": [np.sort(rng.integers(0, t, len(c))).tolist() for t, c in zip(now, clicks, strict=True)],
            "strengths": [rng.random(len(t)).tolist() for t in tags], "price": rng.normal(size=rows),
            "y": pl.Series(rng.integers(0, 2, rows)).set(pl.Series(rng.random(rows) < 0.3), None),
            "other": rng.integers(0, 2, rows), "part": np.repeat([0, 1, 2], [rows - 300, 150, 150]),
        }
    )  # fmt: skip


def rich_log(folder: Path) -> Small:
    """The log, encoded; its jobs are given ``**small.job``."""
    raw().write_parquet(folder / "log.parquet")
    (folder / "spec.yaml").write_text(yaml.safe_dump(SPEC))
    encoded = encode(FeatureSpec.model_validate(SPEC), str(folder / "log.parquet"), folder / "encoded")
    job = {"spec": str(folder / "spec.yaml"), "label": "y", "privileged": PRIVILEGED}
    return Small(folder / "log.parquet", encoded, job)


def weights_of(cast: Cast) -> dict[tuple[str, str], Tensor]:
    """The rows of every table, by bank and table, as leaves of a graph."""
    return {
        (bank, table): shard.clone().requires_grad_()
        for bank in cast.layout.banks
        for table, shard, _ in cast.tables.shards(bank)
    }


def by_hand(cast: Cast, name: str, batch: Batch, weights: Mapping[tuple[str, str], Tensor]) -> Outputs:
    """What a member answers for a batch as it sees it, by its own head on plain embeddings."""
    layout = cast.layout.members[name]
    weight = {table: weights[bank, table] for bank in layout.banks for table in cast.layout.banks[bank].tables}
    flat = torch.cat([_field(field.name, batch, weight) for field in layout.flat.fields], 1)
    bags = [_bag(batch, sequence.column) for sequence in layout.sequences]
    tables = {"clicks": "item"}
    tokens = [
        _tokens(bag, weight[tables.get(s.column, s.column)], weight.get(f"{s.column}/gaps"))
        for s, bag in zip(layout.sequences, bags, strict=True)
    ]
    found: Outputs = cast.heads[name](flat, tokens, [bag.lengths_B for bag in bags])
    return found


def _bag(batch: Batch, name: str) -> Jagged:
    view = batch.serving if name in batch.serving.bags else batch.privileged
    assert view is not None
    return view.bag(name)


def _field(name: str, batch: Batch, weight: Mapping[str, Tensor]) -> Tensor:
    for view in (batch.serving, batch.privileged):
        if view is not None and name in view.float_names:
            return view.floats((name,))
        if view is not None and name in view.id_names:
            return weight[name][view.ids((name,))[0]]
    bag = _bag(batch, name)
    found, start = [], 0
    for length in bag.lengths_B.tolist():
        vectors = weight[name][bag.values_L[start : start + length]]
        strengths = torch.ones(length) if bag.weights_L is None else bag.weights_L[start : start + length]
        found.append((vectors * strengths.unsqueeze(1)).sum(0) / strengths.sum().clamp(min=1e-12))
        start += length
    return torch.stack(found)


def _tokens(bag: Jagged, values: Tensor, gaps: Tensor | None) -> Tensor:
    flat = values[bag.values_L]
    if gaps is not None and bag.gaps_L is not None:
        flat = flat + gaps[bag.gaps_L]
    longest = max(1, int(bag.lengths_B.max()))
    parts = torch.split(flat, bag.lengths_B.tolist())
    return torch.stack([torch.nn.functional.pad(p, (0, 0, 0, longest - len(p))) for p in parts])
