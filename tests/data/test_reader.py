"""Reading: every row once, in an order that seed and epoch alone decide, and nothing that the selection may not see."""

import threading
import time

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch

from recdistill.data import encode as encode_module
from recdistill.data.encode import encode
from recdistill.data.reader import Reader, Selection, read_ahead
from recdistill.data.thinning import Thinning, drawn
from recdistill.errors import LogError, VisibilityError
from tests.data.logs import raw, spec, write
from tests.oracles import encoding as oracle

ALL = Selection(
    ("user", "city", "tags", "words", "price", "price_band"), ("dwell_ms", "click", "seen"), ("buy", "click")
)
IDS = Selection(("user",), (), ("buy",))


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """500 rows in row groups of 16 and shards of 48; 400 of them for training: 25 groups, six windows and a bit."""
    folder = tmp_path_factory.mktemp("log")
    frame = raw(500).with_columns(weight=pl.int_range(500) / 100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode_module, "GROUP_ROWS", 16)
        patch.setattr(encode_module, "SHARD_ROWS", 48)
        return encode(spec(weight="weight"), write(frame, folder / "log.parquet"), folder / "encoded")


def row_ids(batches):
    return [row for batch in batches for row in batch.row_id_B.tolist()]


def log_rows(log, split="train"):
    return log.labels(split).collect()["row_id"].to_list()


def sizes(batches):
    return [len(batch) for batch in batches]


# Which rows, in which order


@pytest.mark.parametrize("size", [1, 7, 16, 37, 64, 65, 100, 399, 400, 401, 5000])
def test_an_epoch_holds_every_row_once_in_full_batches(log, size):
    reader = Reader(log, ("train",), IDS)
    for batches in (list(reader.shuffled(size, seed=1, epoch=0)), list(reader.in_order(size))):
        assert sorted(row_ids(batches)) == sorted(log_rows(log))
        assert sizes(batches)[:-1] == [size] * (len(batches) - 1)
        assert 0 < len(batches[-1]) <= size
    assert reader.rows() == 400


@pytest.mark.parametrize("size", [7, 16, 64, 400])
def test_in_order_is_the_order_of_the_log(log, size):
    assert row_ids(Reader(log, ("train",), IDS).in_order(size)) == log_rows(log)


def test_several_splits_follow_each_other(log):
    reader = Reader(log, ("train", "valid"), IDS)
    assert row_ids(reader.in_order(33)) == log_rows(log) + log_rows(log, "valid")
    assert reader.rows() == 450
    assert sorted(row_ids(reader.shuffled(33, seed=0, epoch=0))) == sorted(log_rows(log) + log_rows(log, "valid"))


def test_a_seed_and_an_epoch_decide_the_order(log):
    orders = {
        (seed, epoch): tuple(row_ids(Reader(log, ("train",), IDS).shuffled(32, seed=seed, epoch=epoch)))
        for seed in (0, 1)
        for epoch in (0, 1, 2)
    }
    assert len(set(orders.values())) == 6
    assert tuple(row_ids(Reader(log, ("train",), IDS).shuffled(32, seed=1, epoch=2))) == orders[1, 2]
    assert tuple(log_rows(log)) not in orders.values()


def test_what_is_read_of_a_row_does_not_change_its_place(log):
    few, many = (row_ids(Reader(log, ("train",), s).shuffled(32, seed=0, epoch=0)) for s in (IDS, ALL))
    assert few == many


def test_shuffling_mixes_distant_rows(log):
    order = np.array(row_ids(Reader(log, ("train",), IDS).shuffled(16, seed=0, epoch=0)))
    place = {row: i for i, row in enumerate(log_rows(log))}
    places = np.array([place[row] for row in order])
    assert abs(np.corrcoef(places, np.arange(400))[0, 1]) < 0.3
    assert np.mean([len({p // 16 for p in places[i : i + 16]}) for i in range(0, 400, 16)]) > 2


# What is read of each row


def by_row(log, size, selection=ALL, thinning=None, shuffled=True):
    """Everything that was read of each row, by its id."""
    reader = Reader(log, ("train",), selection, thinning or Thinning())
    found = {}
    for batch in reader.shuffled(size, seed=3, epoch=1) if shuffled else reader.in_order(size):
        views = [view for view in (batch.serving, batch.privileged) if view is not None]
        ends = {n: torch.cumsum(bag.lengths_B, 0) for view in views for n, bag in view.bags.items()}
        for i, row in enumerate(batch.row_id_B.tolist()):
            read = {"weight": batch.weight_B[i].item()} | {f"label {n}": v[i].item() for n, v in batch.labels.items()}
            for view in views:
                read |= {n: view.ids((n,))[0, i].item() for n in view.id_names}
                read |= {n: view.floats((n,))[i, 0].item() for n in view.float_names}
                for n, bag in view.bags.items():
                    read[n] = bag.values_L[ends[n][i] - bag.lengths_B[i] : ends[n][i]].tolist()
            found[row] = read
    return found


@pytest.mark.parametrize("size", [5, 64, 1000])
def test_shuffled_rows_keep_all_their_values(log, size):
    tables = [log.view("train", view).collect() for view in ("serving", "post_event", "labels")]
    serving, after, labels = tables
    found = by_row(log, size)
    assert len(found) == 400
    for i, row in enumerate(log_rows(log)):
        expected = {name: serving[name][i] for name in ALL.serving} | {name: after[name][i] for name in ALL.privileged}
        expected = {k: v.to_list() if isinstance(v, pl.Series) else v for k, v in expected.items()}
        expected |= {"weight": labels["weight"][i]}
        for name in ALL.labels:
            known = labels[name][i]
            assert (known is None and np.isnan(found[row][f"label {name}"])) or found[row][f"label {name}"] == known
        assert {k: v for k, v in found[row].items() if not k.startswith("label ")} == expected


def test_types_are_those_of_the_engine(log):
    batch = next(Reader(log, ("train",), ALL).shuffled(8, seed=0, epoch=0))
    assert batch.row_id_B.dtype == batch.serving.ids_FB.dtype == batch.serving.bag("tags").values_L.dtype == torch.int64
    assert {t.dtype for t in (batch.serving.floats_BN, batch.weight_B, *batch.labels.values())} == {torch.float32}
    assert batch.serving.id_names == ("user", "city", "price_band")
    assert batch.privileged.float_names == ("dwell_ms", "click")


def test_without_privileged_columns_there_is_no_privileged_view_and_without_weights_all_weigh_one(tmp_path):
    plain = encode(spec(), write(raw(50), tmp_path / "log.parquet"), tmp_path / "out")
    batch = next(Reader(plain, ("train",), Selection(("price",))).in_order(8))
    assert batch.privileged is None
    assert batch.labels == {}
    assert batch.weight_B.tolist() == [1.0] * 8
    assert batch.serving.ids_FB.shape == (0, 8)


# Thinning


def test_a_draw_is_decided_by_row_purpose_and_seed_and_is_even():
    rows = np.arange(20_000) - 7
    base = drawn(rows, "keep_labels", 0)
    assert base[:3].tolist() == [
        oracle.bucket(oracle.splitmix64(int(row) ^ oracle.splitmix64(oracle.text_hash("keep_labels"))), 2**53) / 2**53
        for row in rows[:3]
    ]
    assert np.array_equal(base[::-1], drawn(rows[::-1].copy(), "keep_labels", 0))
    assert (base.min() >= 0, base.max() < 1) == (True, True)
    assert np.abs(np.histogram(base, 10, (0, 1))[0] - 2000).max() < 5 * np.sqrt(2000)
    for other in (drawn(rows, "keep_labels", 1), drawn(rows, "other", 0)):
        assert abs(np.corrcoef(base, other)[0, 1]) < 0.03


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """4000 training rows with labels that are all known."""
    folder = tmp_path_factory.mktemp("large")
    rng = np.random.default_rng(0)
    frame = {
        "t": np.arange(5000),
        "x": np.arange(5000) % 9,
        "y": rng.integers(0, 2, 5000),
        "z": rng.integers(0, 2, 5000),
    }
    made = spec(
        time="t", row_id=[], group=None, serving={"x": "categorical"}, post_event={"y": "binary", "z": "binary"}
    )
    return encode(made, write(frame, folder / "log.parquet"), folder / "encoded")


def thinned(log, size, thinning, labels=("y", "z")):
    """The labels of each row that takes part."""
    reader = Reader(log, ("train",), Selection(("x",), (), labels), thinning)
    batches = list(reader.in_order(size))
    assert sum(sizes(batches)) == reader.rows()
    return {
        row: tuple(batch.labels[name][i].item() for name in labels)
        for batch in batches
        for i, row in enumerate(batch.row_id_B.tolist())
    }


def test_kept_labels_are_the_given_share_and_the_same_rows_under_any_batch_size(large):
    full = thinned(large, 100, Thinning())
    some = thinned(large, 100, Thinning(seed=5, keep_labels=0.3))
    known = {row for row, (y, _) in some.items() if not np.isnan(y)}
    assert len(some) == len(full) == 4000
    assert len(known) / 4000 == pytest.approx(0.3, abs=0.03)
    assert all(some[row] == full[row] for row in known)
    assert all(np.isnan(z) for row, (_, z) in some.items() if row not in known)
    again = {row for row, (y, _) in thinned(large, 999, Thinning(5, 0.3)).items() if not np.isnan(y)}
    other = {row for row, (y, _) in thinned(large, 999, Thinning(6, 0.3)).items() if not np.isnan(y)}
    more = {row for row, (y, _) in thinned(large, 999, Thinning(5, 0.5)).items() if not np.isnan(y)}
    assert known == again
    assert known < more
    assert len(known & other) / 4000 == pytest.approx(0.09, abs=0.02)


def test_negatives_are_kept_at_the_given_rate_and_positives_all(large):
    full = thinned(large, 100, Thinning())
    positive = {row for row, (y, _) in full.items() if y == 1}
    some = thinned(large, 100, Thinning(seed=2, negative_keep_rate=0.25))
    assert positive <= some.keys()
    assert len(some.keys() - positive) / (4000 - len(positive)) == pytest.approx(0.25, abs=0.03)
    assert all(some[row] == full[row] for row in some)
    assert thinned(large, 777, Thinning(2, negative_keep_rate=0.25)) == some
    assert thinned(large, 777, Thinning(3, negative_keep_rate=0.25)).keys() != some.keys()


def test_the_first_label_decides_who_is_negative_and_unknown_is_not_negative(log):
    some = by_row(log, 64, Selection(("user",), (), ("buy", "click")), Thinning(0, negative_keep_rate=1e-9))
    everything = by_row(log, 64, Selection(("user",), (), ("buy", "click")))
    assert some.keys() == {row for row, read in everything.items() if read["label buy"] != 0}
    assert any(np.isnan(read["label buy"]) for read in some.values())


def test_bags_weights_and_views_of_thinned_rows_stay_with_their_rows(log):
    everything, some = by_row(log, 50), by_row(log, 50, thinning=Thinning(0, negative_keep_rate=0.4))
    assert 0 < len(some) < len(everything)
    for row, read in some.items():
        assert str(read) == str(everything[row])


def test_thinned_batches_are_full_and_a_log_thinned_to_nothing_is_empty(log, tmp_path):
    reader = Reader(log, ("train",), IDS, Thinning(0, negative_keep_rate=0.3))
    assert sizes(reader.shuffled(37, seed=0, epoch=0))[:-1] == [37] * (reader.rows() // 37)
    frame = raw(50).with_columns(buy=pl.lit(0))
    negatives = encode(spec(), write(frame, tmp_path / "log.parquet"), tmp_path / "out")
    nothing = Reader(negatives, ("train",), IDS, Thinning(0, negative_keep_rate=1e-12))
    assert nothing.rows() == 0
    assert list(nothing.shuffled(8, seed=0, epoch=0)) == []


# Who may see what


def test_a_post_event_column_in_the_serving_selection_is_refused(log):
    with pytest.raises(
        VisibilityError, match="'dwell_ms' is no serving column of the spec, but was asked for in the serving view"
    ):
        Reader(log, ("train",), Selection(("user", "dwell_ms")))


@pytest.mark.parametrize("name", ["user", "absent"])
def test_a_column_that_is_not_post_event_in_the_privileged_selection_is_refused(log, name):
    with pytest.raises(VisibilityError, match=f"'{name}' is no post-event column of the spec"):
        Reader(log, ("train",), Selection(("city",), (name,)))


def test_only_what_is_selected_is_read(log):
    batch = next(Reader(log, ("train",), Selection(("user", "price"), ("seen",), ("click",))).in_order(8))
    assert batch.serving.names == ("user", "price")
    assert batch.privileged.names == ("seen",)
    assert list(batch.labels) == ["click"]
    with pytest.raises(VisibilityError):
        batch.serving.bag("seen")


def rewritten(log, tmp_path, change, view="post_event"):
    """A folder with the post-event files of the training split changed, for `Reader.post_event`."""
    for file in log.files("train", view):
        path = tmp_path / "train" / file.name
        path.parent.mkdir(exist_ok=True)
        pq.write_table(change(pq.read_table(file)), path, row_group_size=16)
    return tmp_path


def test_post_event_columns_may_come_from_another_folder(log, tmp_path):
    other = rewritten(
        log, tmp_path, lambda t: t.set_column(t.column_names.index("dwell_ms"), "dwell_ms", [np.full(len(t), 7, "f4")])
    )
    reader = Reader(log, ("train",), ALL, post_event=other)
    batch = next(reader.shuffled(64, seed=0, epoch=0))
    assert set(batch.privileged.floats(("dwell_ms",)).flatten().tolist()) == {7.0}
    assert torch.equal(
        batch.serving.ids_FB, next(Reader(log, ("train",), ALL).shuffled(64, seed=0, epoch=0)).serving.ids_FB
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.take(np.arange(len(t))[::-1]),
        lambda t: t.slice(0, len(t) - 1),
        lambda t: t.set_column(0, "row_id", [np.arange(len(t))]),
    ],
    ids=["order", "fewer", "ids"],
)
def test_privileged_rows_that_are_not_those_of_the_labels_are_refused(log, tmp_path, change):
    reader = Reader(log, ("train",), ALL, post_event=rewritten(log, tmp_path, change))
    with pytest.raises(LogError, match=r"the privileged rows of .* are not those of the labels; encode it again"):
        list(reader.in_order(64))


def test_a_missing_file_is_refused_with_its_path(log, tmp_path):
    reader = Reader(log, ("train",), ALL, post_event=tmp_path)
    with pytest.raises(
        LogError, match=r"post_event-00000\.parquet: row group 0 cannot be read .* encode the log again"
    ):
        list(reader.in_order(64))


# Reading ahead


def reader_threads():
    return [thread for thread in threading.enumerate() if thread.name == "recdistill-reader"]


def test_items_come_in_order_and_the_thread_ends_with_them():
    assert list(read_ahead(iter(range(100)))) == list(range(100))
    assert list(read_ahead(iter([]))) == []
    assert reader_threads() == []


def test_a_reader_stays_only_so_far_ahead():
    made = []

    def items():
        for i in range(50):
            made.append(i)
            yield i

    ahead = read_ahead(items(), depth=3)
    assert next(ahead) == 0
    deadline = time.monotonic() + 5
    while len(made) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(made) == 5  # one taken, three waiting, one in the hand of the thread
    ahead.close()


def test_an_abandoned_epoch_stops_its_thread(log):
    epoch = Reader(log, ("train",), IDS).shuffled(2, seed=0, epoch=0)
    next(epoch)
    assert len(reader_threads()) == 1
    epoch.close()
    assert reader_threads() == []


def test_a_loop_left_early_stops_its_thread(log):
    for batch in Reader(log, ("train",), IDS).shuffled(2, seed=0, epoch=0):
        assert len(batch) == 2
        break
    assert reader_threads() == []


def test_an_epoch_that_was_never_begun_starts_no_thread(log):
    Reader(log, ("train",), IDS).shuffled(2, seed=0, epoch=0)
    assert reader_threads() == []


@pytest.mark.parametrize("error", [LogError("torn"), KeyError("x"), KeyboardInterrupt(), SystemExit(3)], ids=type)
def test_an_error_of_the_thread_surfaces_after_what_was_read_before(error):
    def items():
        yield 1
        yield 2
        raise error

    ahead = read_ahead(items())
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(type(error)) as caught:
        next(ahead)
    assert caught.value is error
    assert reader_threads() == []


def test_two_epochs_may_be_read_at_the_same_time(log):
    reader = Reader(log, ("train",), IDS)
    pairs = list(zip(reader.shuffled(50, seed=0, epoch=0), reader.in_order(50), strict=True))
    assert sorted(row_ids(a for a, _ in pairs)) == sorted(row_ids(b for _, b in pairs))
    assert reader_threads() == []
