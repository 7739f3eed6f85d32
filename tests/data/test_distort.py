"""Distorted views: how often what happens, on what the draws depend, and what a value becomes that is lost."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from recdistill.data.batch import Batch, Jagged, View, concat
from recdistill.data.distort import distorted
from recdistill.data.encode import encode
from recdistill.data.encoded import EncodedLog
from recdistill.data.reader import Reader, Selection, take
from recdistill.data.transforms.rows import MISSING
from recdistill.spec.features import FeatureSpec
from recdistill.spec.members import Distortion

ROWS = 5000
SPEC = FeatureSpec.model_validate(
    {
        "row_id": "key",
        "time": "now",
        "serving": {
            "item": {"type": "id", "min_count": 1},
            "hashed": {"type": "categorical", "hash": 50},
            "band": {"type": "numeric", "column": "price", "buckets": 4},
            "price": {"type": "numeric"},
            "raw": {"type": "numeric", "column": "price", "scale": "none"},
            "absent": {"type": "missing", "column": "price"},
            "tags": {"type": "list"},
            "strong": {"type": "list", "column": "tags", "weights": "strengths"},
            "words": {"type": "text", "hash": 40},
            "clicks": {"type": "sequence", "vocabulary": "item", "times": "then", "max_length": 6},
            "bare": {"type": "sequence", "column": "clicks", "hash": 9, "max_length": 6},
        },
        "post_event": {"dwell": {"type": "numeric"}, "stars": "categorical", "y": "binary"},
    }
)
SERVING = tuple(SPEC.serving)
SALT = torch.tensor(123)


def raw(rows: int, *, missing: bool = False) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    tags = [rng.integers(1, 9, n).tolist() for n in rng.integers(1, 6, rows)]
    clicks = [rng.integers(1, 40, n).tolist() for n in rng.integers(0, 7, rows)]
    frame = pl.DataFrame(
        {
            "key": np.arange(rows) * 7919, "now": np.arange(rows) + 10**6, "item": rng.integers(1, 40, rows),
            "hashed": rng.integers(0, 99, rows), "price": rng.normal(3, 1, rows), "tags": tags,
            "strengths": [rng.random(len(t)).round(3).tolist() for t in tags], "words": ["red wine"] * rows,
            "clicks": clicks, "then": [sorted(rng.integers(0, 10**6, len(c)).tolist()) for c in clicks],
            "dwell": rng.normal(size=rows), "stars": rng.integers(1, 6, rows), "y": rng.integers(0, 2, rows),
        }
    )  # fmt: skip
    if not missing:
        return frame
    return frame.with_columns(pl.lit(None, frame.schema[n]).alias(n) for n in frame.columns if n not in ("key", "now"))


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> EncodedLog:
    folder = tmp_path_factory.mktemp("distort")
    raw(ROWS).write_parquet(folder / "log.parquet")
    return encode(SPEC, str(folder / "log.parquet"), folder / "encoded")


def read(log: EncodedLog, splits: tuple[str, ...] = ("train",), rows: int = ROWS) -> Batch:
    return next(iter(Reader(log, splits, Selection(SERVING, ("dwell", "stars"), ("y",))).in_order(rows)))


@pytest.fixture(scope="module")
def batch(log: EncodedLog) -> Batch:
    return read(log)


def how(**values: Any) -> Distortion:
    return Distortion(**values)


def ids(batch: Batch, name: str) -> Tensor:
    return batch.serving.ids((name,))[0]


def share(found: Tensor) -> float:
    return float(found.float().mean())


def lists(bag: Jagged) -> list[Tensor]:
    return list(torch.split(bag.values_L, bag.lengths_B.tolist()))


def same_view(first: View, second: View, but: tuple[str, ...] = ()) -> bool:
    """Whether two views are equal, some columns aside."""
    same = [torch.equal(first.ids((n,)), second.ids((n,))) for n in first.id_names if n not in but]
    same += [torch.equal(first.floats((n,)), second.floats((n,))) for n in first.float_names if n not in but]
    for name in (n for n in first.bags if n not in but):
        a, b = first.bags[name], second.bags[name]
        pairs = [(a.values_L, b.values_L), (a.lengths_B, b.lengths_B), (a.weights_L, b.weights_L), (a.gaps_L, b.gaps_L)]
        same += [x is y if x is None or y is None else torch.equal(x, y) for x, y in pairs]
    return all(same)


def test_about_the_asked_share_of_values_is_masked_each_by_itself(batch: Batch) -> None:
    found = distorted(batch, how(mask=0.2), SALT, SPEC)
    lost = {name: ids(found, name) == MISSING for name in ("item", "hashed", "band")}
    lost |= {name: found.serving.floats((name,))[:, 0] == 0 for name in ("price", "raw")}
    for name, rows in lost.items():
        assert 0.18 < share(rows) < 0.22, name
    for name in ("tags", "words", "clicks"):
        assert 0.18 < share(found.serving.bags[name].values_L == MISSING) < 0.22, name
        assert torch.equal(found.serving.bags[name].lengths_B, batch.serving.bags[name].lengths_B)
    assert 0.03 < share(lost["item"] & lost["hashed"]) < 0.05  # as two draws apart from each other
    kept = ~lost["item"]
    assert torch.equal(ids(found, "item")[kept], ids(batch, "item")[kept])
    assert found.privileged is not None and batch.privileged is not None
    assert 0.18 < share(found.privileged.ids(("stars",))[0] == MISSING) < 0.22


def test_a_whole_column_is_lost_in_a_step_or_not_at_all(batch: Batch) -> None:
    gone: dict[str, list[float]] = {"item": [], "band": []}
    rows = take(batch, torch.arange(20))
    for step in range(400):
        found = distorted(rows, how(fields=0.3, columns=("item", "band")), torch.tensor(step), SPEC)
        for name, shares in gone.items():
            shares.append(share(ids(found, name) == MISSING))
    for shares in gone.values():
        assert {*shares} == {0.0, 1.0} and 0.23 < np.mean(shares) < 0.37
    together = np.mean(np.array(gone["item"]) * np.array(gone["band"]))
    assert 0.05 < together < 0.14  # 0.09, as two draws apart from each other


def test_the_older_end_of_lists_is_cut_at_a_place_drawn_evenly(batch: Batch) -> None:
    found = distorted(batch, how(truncate=0.5), SALT, SPEC)
    for name in ("clicks", "tags"):
        before, after = lists(batch.serving.bags[name]), lists(found.serving.bags[name])
        assert all(torch.equal(a, b[len(b) - len(a) :]) for a, b in zip(after, before, strict=True))
        assert all(len(a) >= min(len(b), 1) for a, b in zip(after, before, strict=True))
        five = [len(a) for a, b in zip(after, before, strict=True) if len(b) == 5]
        shares = np.bincount(five, minlength=6)[1:] / len(five)  # half stay whole, and a fifth of the others
        assert np.abs(shares - [0.1, 0.1, 0.1, 0.1, 0.6]).max() < 0.05, name
    always = distorted(batch, how(truncate=1), SALT, SPEC).serving.bags["clicks"]
    four = [len(a) for a, b in zip(lists(always), lists(batch.serving.bags["clicks"]), strict=True) if len(b) == 4]
    assert np.abs(np.bincount(four, minlength=5)[1:] / len(four) - 0.25).max() < 0.06


def test_gaps_and_weights_stay_with_their_values(batch: Batch) -> None:
    found = distorted(batch, how(truncate=0.7, mask=0.3), SALT, SPEC).serving
    for name, channel in (("clicks", "gaps_L"), ("strong", "weights_L")):
        before, after = batch.serving.bags[name], found.bags[name]
        assert len(getattr(after, channel)) == len(after.values_L) < len(before.values_L)
        values, kept = lists(before), lists(after)
        channels, left = (torch.split(getattr(bag, channel), bag.lengths_B.tolist()) for bag in (before, after))
        for value, mine, theirs, own in zip(values, left, channels, kept, strict=True):
            assert torch.equal(mine, theirs[len(theirs) - len(mine) :])
            there = own != MISSING
            assert torch.equal(own[there], value[len(value) - len(own) :][there])


def test_noise_has_the_asked_size_and_is_normal(batch: Batch) -> None:
    found = distorted(batch, how(noise=0.5), SALT, SPEC)
    added = {n: (found.serving.floats((n,)) - batch.serving.floats((n,)))[:, 0] for n in ("price", "raw")}
    for noise in added.values():
        assert abs(float(noise.mean())) < 0.03 and abs(float(noise.std()) - 0.5) < 0.03
        assert 0.66 < share(noise.abs() < 0.5) < 0.71  # within one standard deviation
    assert abs(np.corrcoef(*(noise.numpy() for noise in added.values()))[0, 1]) < 0.05
    assert torch.equal(found.serving.ids_FB, batch.serving.ids_FB)
    assert same_view(found.serving, batch.serving, but=("price", "raw", "absent"))


def test_every_row_has_one_level_for_everything(batch: Batch) -> None:
    found = distorted(batch, how(mask=0.4, noise=1.0, truncate=0.5, levels=(0, 1, 2)), SALT, SPEC)
    noise = (found.serving.floats(("raw",)) - batch.serving.floats(("raw",)))[:, 0]
    lost, raw_lost = ids(found, "item") == MISSING, found.serving.floats(("raw",))[:, 0] == 0
    clean = noise == 0
    assert 0.30 < share(clean) < 0.37
    assert not bool(lost[clean].any())
    whole = found.serving.bags["clicks"].lengths_B == batch.serving.bags["clicks"].lengths_B
    assert bool(whole[clean].all())
    assert 0.57 < share(lost[~clean]) < 0.63  # 0.4 of one half of them and 0.8 of the other
    sizes = noise[~clean & ~raw_lost].abs()
    assert abs(float(sizes.square().mean()) - (0.6 * 1 + 0.2 * 4) / 0.8) < 0.25  # fewer of the noisiest are left


def test_only_the_columns_that_are_named_change(batch: Batch) -> None:
    names = ("item", "price", "clicks", "dwell")
    found = distorted(batch, how(mask=0.5, truncate=0.5, noise=1, fields=0.1, columns=names), SALT, SPEC)
    assert found.privileged is not None and batch.privileged is not None
    assert same_view(found.serving, batch.serving, but=names)
    assert same_view(found.privileged, batch.privileged, but=names)
    for name in names[:3]:
        assert not same_view(found.serving, batch.serving, but=tuple(n for n in SERVING if n != name)), name
    assert not torch.equal(found.privileged.floats(("dwell",)), batch.privileged.floats(("dwell",)))


def test_nothing_else_changes_and_the_batch_itself_stays_as_it_was(batch: Batch) -> None:
    before = concat([batch, batch])
    found = distorted(batch, how(mask=0.5, fields=0.5, truncate=0.5, noise=1), SALT, SPEC)
    assert torch.equal(found.row_id_B, batch.row_id_B) and torch.equal(found.weight_B, batch.weight_B)
    assert torch.equal(found.labels["y"], batch.labels["y"])
    again = concat([batch, batch])
    assert same_view(before.serving, again.serving)
    assert same_view(distorted(batch, how(), SALT, SPEC).serving, batch.serving)
    assert same_view(distorted(batch, how(mask=0.9, levels=(0,)), SALT, SPEC).serving, batch.serving)


EVERYTHING = {"mask": 0.3, "fields": 0.3, "truncate": 0.5, "noise": 1.0, "levels": (0, 1, 2)}
Twin = Callable[[Batch, Distortion, Tensor, FeatureSpec], Batch]


def by_position(batch: Batch, distortion: Distortion, salt: Tensor, spec: FeatureSpec) -> Batch:
    """The wrong twin: draws by the place in the batch."""
    placed = replace(batch, row_id_B=torch.arange(len(batch)))
    return replace(distorted(placed, distortion, salt, spec), row_id_B=batch.row_id_B)


def alike_in_any_company(batch: Batch, distort: Twin) -> bool:
    """Whether rows are distorted alike in another order, in a smaller batch, and beside other rows."""
    whole = distort(batch, how(**EVERYTHING), SALT, SPEC)
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(1))
    few = torch.tensor([7, 3, 3000, 512])
    return all(
        same_view(take(whole, rows).serving, distort(take(batch, rows), how(**EVERYTHING), SALT, SPEC).serving)
        for rows in (order, few, few[2:3])
    )


def test_draws_depend_on_the_row_and_not_on_its_company(batch: Batch) -> None:
    assert alike_in_any_company(batch, distorted)
    assert not alike_in_any_company(batch, by_position)


def test_another_salt_draws_anew(batch: Batch) -> None:
    first, second = (distorted(batch, how(mask=0.5, noise=1), torch.tensor(s), SPEC) for s in (1, 2))
    lost = [ids(found, "item") == MISSING for found in (first, second)]
    assert 0.46 < share(lost[0] == lost[1]) < 0.54
    assert abs(np.corrcoef(*(f.serving.floats(("raw",))[:, 0].numpy() for f in (first, second)))[0, 1]) < 0.6


@pytest.fixture(scope="module")
def nothing(log: EncodedLog, tmp_path_factory: pytest.TempPathFactory) -> Batch:
    """Rows of which every raw column is missing, as the encoder writes them."""
    folder = tmp_path_factory.mktemp("nothing")
    raw(50, missing=True).write_parquet(folder / "log.parquet")
    return read(encode(SPEC, str(folder / "log.parquet"), folder / "encoded", fitted=log.fitted), ("test",), 50)


@pytest.mark.parametrize("kind", ["mask", "fields"])
def test_a_lost_value_is_what_the_encoder_writes_for_a_missing_one(batch: Batch, nothing: Batch, kind: str) -> None:
    rows = take(batch, torch.arange(50))
    surely = how(**{kind: 0.9}, levels=(2,), noise=1, truncate=0.3)
    found = distorted(rows, surely, SALT, SPEC)
    for view in ("serving", "privileged"):
        lost, expected = getattr(found, view), getattr(nothing, view)
        assert torch.equal(lost.ids_FB, expected.ids_FB)
        assert lost.float_names == expected.float_names
        assert torch.equal(lost.floats_BN, expected.floats_BN)
    assert nothing.serving.floats(("absent",)).unique().tolist() == [1.0]
    for name, bag in found.serving.bags.items():
        assert not bool(bag.values_L.any()), name  # all MISSING
    if kind == "fields":  # the whole list is missing, and not only each of its values
        assert same_view(
            View("serving", torch.zeros(0, 50, dtype=torch.int64), (), torch.zeros(50, 0), (), found.serving.bags),
            View("serving", torch.zeros(0, 50, dtype=torch.int64), (), torch.zeros(50, 0), (), nothing.serving.bags),
        )
    assert bool((found.serving.bags["tags"].lengths_B > 0).all())


def test_a_list_is_lost_in_the_rows_of_its_strength_alone(batch: Batch) -> None:
    found = distorted(batch, how(fields=0.9, levels=(0, 2)), SALT, SPEC).serving
    gone = found.ids(("item",))[0] == MISSING
    assert 0.45 < share(gone) < 0.55
    bags = (batch.serving.bags["clicks"], found.bags["clicks"], found.bags["strong"])
    strengths = torch.split(bags[2].weights_L, bags[2].lengths_B.tolist())
    for before, after, strength, lost in zip(*map(lists, bags[:2]), strengths, gone.tolist(), strict=True):
        assert len(after) == 0 if lost else torch.equal(before, after)
        assert not lost or strength.tolist() == [1.0]


def test_an_empty_batch_stays_empty(batch: Batch) -> None:
    none = take(batch, torch.zeros(0, dtype=torch.int64))
    found = distorted(none, how(**EVERYTHING), SALT, SPEC)
    assert len(found) == 0 and found.serving.bags["clicks"].lengths_B.shape == (0,)


def test_mistakes_in_a_distortion_are_named(tmp_path: Path) -> None:
    for wrong in ({"mask": 1.0}, {"fields": -0.1}, {"truncate": 1.1}, {"noise": -1}, {"levels": []}, {"levels": [-1]}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            how(**wrong)
