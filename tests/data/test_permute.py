"""The shuffled control: privileged columns permuted jointly over the rows of a split, by row id."""

import polars as pl
import pyarrow.parquet as pq
import pytest

from recdistill.data import encode as encode_module
from recdistill.data.encode import encode
from recdistill.data.permute import permute_privileged
from recdistill.data.reader import Reader, Selection
from tests.data.logs import COLUMNS as COLUMNS_OF_LOGS
from tests.data.logs import raw, spec, write

COLUMNS = ("dwell_ms", "click", "seen")


@pytest.fixture
def make(tmp_path, monkeypatch):
    """A function that encodes a log in small row groups and shards."""
    monkeypatch.setattr(encode_module, "GROUP_ROWS", 16)
    monkeypatch.setattr(encode_module, "SHARD_ROWS", 48)

    def run(frame, name="log"):
        return encode(spec(), write(frame, tmp_path / f"{name}.parquet"), tmp_path / name)

    return run


@pytest.fixture
def log(make):
    return make(raw(500))


def permuted(log, out, split="train", columns=COLUMNS, seed=0):
    """The permuted columns of a split, and the row ids beside them."""
    permute_privileged(log, split, columns, seed=seed, out=out)
    return pl.concat([pl.read_parquet(file) for file in sorted((out / split).iterdir())])


def values(frame, columns=COLUMNS):
    """Rows as hashable values, the row id left out."""
    return [tuple(tuple(v) if isinstance(v, list) else v for v in row) for row in frame.select(columns).rows()]


def test_columns_are_permuted_jointly_and_no_value_is_lost(log, tmp_path):
    before = log.view("train", "post_event").collect()
    after = permuted(log, tmp_path / "out")
    assert after["row_id"].to_list() == before["row_id"].to_list()
    assert sorted(values(after)) == sorted(values(before))
    assert len(set(values(before))) > 390
    stayed = sum(a == b for a, b in zip(values(after), values(before), strict=True))
    assert stayed < 12


def test_row_groups_and_shards_are_those_of_the_original(log, tmp_path):
    permuted(log, tmp_path / "out")
    for file in log.files("train", "post_event"):
        original, copy = (pq.ParquetFile(path).metadata for path in (file, tmp_path / "out" / "train" / file.name))
        groups = [[m.row_group(i).num_rows for i in range(m.num_row_groups)] for m in (original, copy)]
        assert groups[0] == groups[1]
    assert len(list((tmp_path / "out" / "train").iterdir())) == len(log.files("train", "post_event")) == 9


def giver(log, frame):
    """For each row id, the row id whose values it was given; values are unique by their dwell time."""
    original = log.view("train", "post_event").collect()
    owner = dict(zip(original["dwell_ms"], original["row_id"], strict=True))
    return {row: owner[value] for row, value in frame.select("row_id", "dwell_ms").rows()}


def test_the_permutation_belongs_to_row_ids_and_not_to_the_order_of_the_log(make, tmp_path):
    frame = raw(500)
    training = pl.int_range(500) < 400
    order = frame.filter(training).sample(fraction=1, shuffle=True, seed=1)
    one, two = make(frame), make(pl.concat([order, frame.filter(~training)]), "reordered")
    assert one.labels("train").collect()["row_id"].to_list() != two.labels("train").collect()["row_id"].to_list()
    first, second = (giver(log, permuted(log, tmp_path / f"out {i}")) for i, log in enumerate((one, two)))
    assert first == second
    assert sorted(first) == sorted(first.values())


def test_seeds_and_splits_have_permutations_of_their_own(log, tmp_path):
    first, again, other = (giver(log, permuted(log, tmp_path / str(i), seed=seed)) for i, seed in enumerate((0, 0, 1)))
    assert first == again
    assert sum(first[row] == other[row] for row in first) < 12


@pytest.mark.usefixtures("make")
def test_the_same_rows_in_another_split_are_permuted_differently(tmp_path):
    frame = raw(100)
    unscaled = {**COLUMNS_OF_LOGS["post_event"], "dwell_ms": {"type": "numeric", "scale": "none"}}
    places = {}
    for name, train, valid in (("a", [0, 490], [500, 590]), ("b", [500, 590], [0, 490])):
        split = {"column": "time_ms", "train": train, "valid": valid, "test": [600, 990]}
        log = encode(
            spec(split=split, post_event=unscaled), write(frame, tmp_path / f"{name}.parquet"), tmp_path / name
        )
        for part in ("train", "valid"):
            found = permuted(log, tmp_path / f"out {name}", part)
            places[name, part] = found.sort("row_id")["dwell_ms"].to_list()
    assert sorted(places["a", "train"]) == sorted(places["b", "valid"])
    assert places["a", "train"] != places["b", "valid"]


def test_other_columns_are_not_in_the_permuted_files_and_the_encoded_log_stays_as_it_was(log, tmp_path):
    before = {path: path.read_bytes() for path in log.folder.rglob("*") if path.is_file()}
    frame = permuted(log, tmp_path / "out", columns=("dwell_ms",))
    assert frame.columns == ["row_id", "dwell_ms"]
    assert {path: path.read_bytes() for path in log.folder.rglob("*") if path.is_file()} == before


def test_a_reader_of_the_permuted_columns_sees_other_privileged_values_and_the_same_rest(log, tmp_path):
    permute_privileged(log, "train", COLUMNS, seed=0, out=tmp_path / "out")
    selection = Selection(("user", "tags", "price"), COLUMNS, ("buy", "click"))
    plain = next(Reader(log, ("train",), selection).in_order(1000))
    shuffled = next(Reader(log, ("train",), selection, post_event=tmp_path / "out").in_order(1000))
    assert plain.row_id_B.equal(shuffled.row_id_B)
    assert plain.serving.ids_FB.equal(shuffled.serving.ids_FB)
    assert plain.serving.bag("tags").values_L.equal(shuffled.serving.bag("tags").values_L)
    assert plain.labels["click"].equal(shuffled.labels["click"])
    assert not plain.privileged.floats_BN.equal(shuffled.privileged.floats_BN)
    pairs = [list(map(tuple, batch.privileged.floats_BN.tolist())) for batch in (plain, shuffled)]
    assert sorted(pairs[0]) == sorted(pairs[1])


def test_a_permuted_label_tells_nothing_of_the_label(log, tmp_path):
    before, after = log.view("train", "post_event").collect(), permuted(log, tmp_path / "out")
    agreement = (before["click"] == after["click"]).mean()
    share = (before["click"] > 0).mean()
    assert agreement == pytest.approx(share**2 + (1 - share) ** 2, abs=0.1)


def test_the_weights_of_a_privileged_list_are_permuted_with_it(tmp_path):
    amounts = pl.Series([[float(i)] for i in range(500)])
    post_event = {**COLUMNS_OF_LOGS["post_event"], "basket": {"type": "list", "weights": "amounts"}}
    frame = raw(500).with_columns(basket=pl.Series([[i % 7] for i in range(500)]), amounts=amounts)
    log = encode(spec(post_event=post_event), write(frame, tmp_path / "log.parquet"), tmp_path / "encoded")
    permute_privileged(log, "train", ("basket",), seed=0, out=tmp_path / "out")
    plain, shuffled = (
        next(Reader(log, ("train",), Selection((), ("basket",), ("buy",)), post_event=folder).in_order(1000))
        for folder in (None, tmp_path / "out")
    )
    bags = [batch.privileged.bag("basket") for batch in (plain, shuffled)]
    assert not bags[0].weights_L.equal(bags[1].weights_L)
    pairs = [set(zip(bag.values_L.tolist(), bag.weights_L.tolist(), strict=True)) for bag in bags]
    assert pairs[0] == pairs[1] and len(pairs[0]) == 400
