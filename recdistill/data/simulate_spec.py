"""A log simulated from any feature spec: columns of the right types, a time order, and labels that can be learned.

A hidden mood, and the serving columns, drive the labels; post-event columns are noisy traces of both
(`simulate_columns.py`). Side tables are not written: the log holds their columns itself, and `flat_spec` is the spec
without its joins.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recdistill.data.simulate_columns import (
    Floats,
    binary_trace,
    clock,
    distinct_keys,
    effect,
    in_order,
    needs_clock,
    post_event_columns,
    serving_columns,
)
from recdistill.errors import LogError
from recdistill.publish import published
from recdistill.spec.columns import Binary, History
from recdistill.spec.features import FeatureSpec, SplitByColumn, SplitByHash

SHARES = {"train": 0.8, "valid": 0.1, "test": 0.1}


def flat_spec(spec: FeatureSpec) -> FeatureSpec:
    """The spec for a log that holds the columns of all side tables itself."""
    return spec.model_copy(update={"join": {}})


def simulate_spec(
    spec: FeatureSpec,
    path: Path,
    *,
    rows: int,
    seed: int = 0,
    labelled: float = 1.0,
    label: Sequence[str] = (),
    where: Mapping[str, Any] | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Write a log that a spec describes; it appears only when it is complete.

    Args:
        spec: the feature spec.
        path: the parquet file to write.
        rows: number of rows.
        seed: the same seed writes the same rows.
        labelled: share of the training rows whose label is known.
        label: the columns whose label is withheld from the other rows.
        where: raw columns that all rows hold at one value.
        progress: called with the number of rows at the end.

    Raises:
        LogError: the columns of the row id do not tell the rows apart.
    """
    rng = np.random.default_rng([seed, 3])
    utility = np.zeros(rows)
    raw: dict[str, pl.Series] = {}
    time = clock(spec, rows)
    if needs_clock(spec):
        raw[str(spec.time)] = time
    keys = distinct_keys(spec, rows, rng)
    raw |= {spec.source(name): pl.Series(code) for name, code in keys.items()}
    for name, column in in_order(spec.serving):
        new, found = serving_columns(name, column, raw, time, rng)
        raw |= new
        utility += (effect(name, keys[name]) if name in keys else found) / np.sqrt(len(spec.serving))
    mood = rng.normal(0, 0.7, rows)
    want = 1.5 * utility + mood
    for name, column in in_order(spec.post_event):
        if not (isinstance(column, Binary) and column.always):  # what every row has is not written
            raw |= post_event_columns(name, column, raw, want, time, rng)
    raw |= _roles(spec, time, rng, raw)
    raw |= _of_histories(spec, want, rng, raw)
    for name, value in (where or {}).items():
        raw[name] = pl.Series([value[0] if isinstance(value, list) else value] * rows)
    if labelled < 1:
        early = np.arange(rows) < rows * SHARES["train"]
        for name in (name for name in label if spec.source(name) in raw):
            keep = ~early | (rng.random(rows) < labelled)
            raw[spec.source(name)] = raw[spec.source(name)].set(pl.Series(~keep), None)
    frame = pl.DataFrame([series.alias(name) for name, series in raw.items()])
    if spec.row_id and frame.select(spec.row_id).is_duplicated().any():
        raise LogError(
            f"simulation: several rows share a row id {spec.row_id}; add a column to it that is neither typed nor the "
            "split's, for example an impression number"
        )
    with published(path) as work:
        frame.write_parquet(work)
    progress(rows)


def _roles(
    spec: FeatureSpec, time: pl.Series, rng: np.random.Generator, raw: Mapping[str, pl.Series]
) -> dict[str, pl.Series]:
    """Columns of roles that are no typed columns: identity, time, group, weight, scenario, references, the split."""
    rows = len(time)
    made: dict[str, pl.Series] = {}
    if isinstance(spec.split, SplitByColumn):
        made[spec.split.column] = _split_values(spec.split, rows)
    taken = {*raw, *made}
    if spec.time is not None and spec.time not in taken:
        made[spec.time] = time
    key = spec.split.hash.key if isinstance(spec.split, SplitByHash) else None
    for role in (spec.group, spec.scenario, None if key in spec.row_id else key):
        if role is not None and role not in taken and role not in made:
            made[role] = pl.Series(rng.integers(0, max(2, rows // 20), rows))
    for name in spec.row_id:
        if name not in taken and name not in made:
            made[name] = pl.Series(np.arange(rows))
    if spec.weight is not None and spec.weight not in taken:
        made[spec.weight] = pl.Series(rng.uniform(0.5, 2, rows))
    made |= {name: pl.Series(rng.random(rows)) for name in spec.reference}
    return made


def _of_histories(
    spec: FeatureSpec, want: Floats, rng: np.random.Generator, raw: Mapping[str, pl.Series]
) -> dict[str, pl.Series]:
    """What history columns are made from and no other column reads: outcomes, keys and sessions."""
    histories = [column for column in spec.columns.values() if isinstance(column, History)]
    outcomes = {column.of for column in histories}
    made: dict[str, pl.Series] = {}
    for source in dict.fromkeys(source for column in histories for source in column.sources("")):
        if source in outcomes and source not in raw:
            made[source] = binary_trace(want, rng)
        elif source not in raw:
            made[source] = pl.Series(rng.integers(0, max(2, len(want) // 20), len(want)))
    return made


def _split_values(split: SplitByColumn, rows: int) -> pl.Series:
    """Values of the split column in the order of the splits, one bound each, in the shares of `SHARES`."""
    values = []
    for name, share in SHARES.items():
        low, high = split.ranges.get(name, split.train)
        count = round(rows * share)
        values += [low] * (count - count // 2) + [high] * (count // 2)
    return pl.Series((values + [split.test[1]] * rows)[:rows])
