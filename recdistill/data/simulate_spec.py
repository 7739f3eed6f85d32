"""A log simulated from any feature spec: columns of the right types, a time order, and labels that can be learned.

Every value of an embedded column has an effect, fixed by its hash; numbers act linearly. A hidden mood, and the serving
columns, drive the labels; post-event columns are noisy traces of both. Side tables are not written: the log holds their
columns itself, and `flat_spec` is the spec without its joins.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import special

from recdistill.data.transforms.hashing import splitmix64
from recdistill.errors import LogError
from recdistill.spec.columns import AnyColumn, Bag, Binary, History, Numeric, Vocabularied
from recdistill.spec.features import FeatureSpec, SplitByColumn, SplitByHash

Floats = NDArray[np.float64]
SHARES = {"train": 0.8, "valid": 0.1, "test": 0.1}
MISSING_SHARE = 0.03


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
    for name, column in spec.serving.items():
        source = spec.source(name)
        if source not in raw and not isinstance(column, History):
            raw[source], effect = _column(name, column, rows, rng)
            utility += effect / np.sqrt(len(spec.serving))
    mood = rng.normal(0, 0.7, rows)
    want = 1.5 * utility + mood
    for name, column in spec.post_event.items():
        source = spec.source(name)
        if source not in raw and not isinstance(column, History):
            raw[source] = _trace(column, want, rng)
    raw |= _roles(spec, rows, rng, raw)
    raw |= _of_histories(spec, want, rng, raw)
    for name, value in (where or {}).items():
        raw[name] = pl.Series([value[0] if isinstance(value, list) else value] * rows)
    if labelled < 1:
        early = np.arange(rows) < rows * SHARES["train"]
        for name in label:
            keep = ~early | (rng.random(rows) < labelled)
            raw[spec.source(name)] = raw[spec.source(name)].set(pl.Series(~keep), None)
    frame = pl.DataFrame([series.alias(name) for name, series in raw.items()])
    if spec.row_id and frame.select(spec.row_id).is_duplicated().any():
        raise LogError(
            f"simulation: several rows share a row id {spec.row_id}; add a column to it that is neither typed nor the "
            "split's, for example an impression number"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    work = path.with_name(f".{path.name}")
    frame.write_parquet(work)
    work.rename(path)
    progress(rows)


def _column(name: str, column: AnyColumn, rows: int, rng: np.random.Generator) -> tuple[pl.Series, Floats]:
    """A serving column and its effect on each row."""
    missing = rng.random(rows) < MISSING_SHARE
    if isinstance(column, Bag):
        lengths = rng.integers(0, 6, rows)
        elements = rng.zipf(1.5, int(lengths.sum())) % 200
        owner = np.repeat(np.arange(rows), lengths)
        effect = np.bincount(owner, _effect(name, elements), rows) / np.maximum(lengths, 1)
        lists = np.split(elements, np.cumsum(lengths)[:-1])
        if column.separator is not None:
            return pl.Series([column.separator.join(map(str, v)) for v in lists]), effect
        return pl.Series([v.tolist() for v in lists], dtype=pl.List(pl.Int64)), effect
    if isinstance(column, Vocabularied):
        size = max(20, rows // 50) if column.type == "id" else 12
        code = (rng.beta(1, 2, rows) * size).astype(np.int64)
        return pl.Series(code).set(pl.Series(missing), None), np.where(missing, 0.0, _effect(name, code))
    if isinstance(column, Numeric):
        value: NDArray[Any] = np.round(np.exp(rng.normal(3, 1, rows)), 3)
        return pl.Series(value).set(pl.Series(missing), None), np.where(missing, 0.0, np.log(value) - 3)
    flag = rng.random(rows) < 0.3
    return pl.Series(flag.astype(np.int8)), flag.astype(np.float64) - 0.3


def _effect(name: str, value: NDArray[np.int64]) -> Floats:
    """A standard normal effect for each value, fixed by the column's name and the value."""
    salt = np.int64(sum(name.encode()))
    uniform = (splitmix64(value * 1_000_003 + salt) >> np.int64(11)).astype(np.float64) / 2.0**53 + 0.5
    return special.ndtri(np.clip(uniform, 1e-6, 1 - 1e-6))


def _trace(column: AnyColumn, want: Floats, rng: np.random.Generator) -> pl.Series:
    """A post-event column that tells something of what the user wanted."""
    noisy = want + rng.normal(0, 0.5, len(want))
    if isinstance(column, Binary):
        return pl.Series((rng.random(len(want)) < special.expit(want - 0.5)).astype(np.int8))
    if isinstance(column, Numeric):
        return pl.Series(np.round(np.exp(3 + 0.5 * noisy), 3))
    bands = np.clip(np.floor(noisy * 2), -4, 4).astype(np.int64) + 4
    if isinstance(column, Bag):
        if column.separator is not None:
            return pl.Series([column.separator.join(["1"] * int(b)) for b in bands])
        return pl.Series([[1] * int(b) for b in bands], dtype=pl.List(pl.Int64))
    return pl.Series(bands)


def _roles(
    spec: FeatureSpec, rows: int, rng: np.random.Generator, raw: Mapping[str, pl.Series]
) -> dict[str, pl.Series]:
    """Columns of roles that are no typed columns: identity, time, group, weight, scenario, references, the split."""
    made: dict[str, pl.Series] = {}
    if isinstance(spec.split, SplitByColumn):
        made[spec.split.column] = _split_values(spec.split, rows)
    taken = {*raw, *made}
    if spec.time is not None and spec.time not in taken:
        made[spec.time] = pl.Series(1_650_000_000_000 + np.arange(rows) * 1000)
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
            made[source] = _trace(Binary(type="binary"), want, rng)
        elif source not in raw:
            made[source] = pl.Series(rng.integers(0, max(2, len(want) // 20), len(want)))
    return made


def _split_values(split: SplitByColumn, rows: int) -> pl.Series:
    """Values of the split column in the order of the splits, one bound each, in the shares of `SHARES`."""
    values = []
    for name, share in SHARES.items():
        low, high = getattr(split, name)
        count = round(rows * share)
        values += [low] * (count - count // 2) + [high] * (count // 2)
    return pl.Series((values + [split.test[1]] * rows)[:rows])
