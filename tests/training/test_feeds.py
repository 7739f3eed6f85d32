"""Feeds: which rows come in which step, how mixtures keep their ratio, and what a pool may lack."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from rich.console import Console

from recdistill.data.batch import Batch
from recdistill.data.reader import Reader, Selection
from recdistill.data.thinning import Thinning
from recdistill.data.transforms.rows import UNKNOWN
from recdistill.distill.schedule import Now
from recdistill.errors import LogError, TrainingError
from recdistill.runs import logs as logs_module
from recdistill.runs.console import Reporter
from recdistill.spec.load import parse_job
from recdistill.training.feeds import Cursor, Feed, LogFeed, MixFeed, NoiseFeed, unique_rows
from recdistill.training.fit import engine_of
from recdistill.training.play import play
from recdistill.training.reading import Data, Logs, Training
from tests.conftest import Small
from tests.training.bench import BCE, LAST, OTHER, STUDENT, Bench, described, problems, same

POOL_ROWS = 500
TEACHER: dict[str, Any] = {**OTHER, "view": ["serving", "privileged"], "share": {"tables": "student"}}
TERMS = [BCE, "bce(teacher.logit, label)", "soft(student.logit, teacher.logit)"]


@pytest.fixture(scope="module")
def pool(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of other impressions, without a label, a split or a time; half of the users are new."""
    frame = pl.read_parquet(small.log).head(POOL_ROWS)
    users = pl.when(pl.col("impression_id") % 2 == 0).then(pl.col("user_id") + 10**6).otherwise(pl.col("user_id"))
    frame = frame.with_columns(pl.col("impression_id") + 10**6, users.alias("user_id"))
    path = tmp_path_factory.mktemp("pool") / "pool.parquet"
    frame.drop("purchase", "click", "day", "time_ms", "best_serving", "best_full").write_parquet(path)
    return path


def without(pool: Path, folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    pl.read_parquet(pool).drop(names).write_parquet(folder / "pool.parquet")
    return folder / "pool.parquet"


def logs_of(small: Small, job: Mapping[str, Any]) -> Logs:
    """The logs of a job, encoded as a run does it."""
    parsed, spec = parse_job(job, "job")
    reporter = Reporter(Console(quiet=True))
    with reporter.progress:
        return logs_module.encoded(spec, str(small.log), parsed, ("train",), reporter)


def bench(small: Small, pool: Path, phase: dict[str, Any], members: dict[str, Any] | None = None, **more: Any) -> Bench:
    """A job that reads a pool alone, and mixed with the log."""
    members = members or {"student": STUDENT, "teacher": TEACHER}
    feeds = {"pool": {"log": str(pool)}, "mixed": {"mix": {"log": 3, "pool": 1}}, **more.pop("feeds", {})}
    more = {"privileged": ["dwell_ms"], "feeds": feeds, **more}
    phases = [{"steps": 4, **LAST, **phase}]
    found = logs_of(small, described(small, members, phases, **more))
    return Bench.of(small, members, phases, logs=found.feeds, **more)


def mixed(small: Small, pool: Path, terms: list[str] | None = None, **more: Any) -> Bench:
    return bench(small, pool, {"terms": terms or TERMS, "feed": "mixed"}, **more)


def parts(b: Bench) -> tuple[LogFeed, LogFeed]:
    """The log and the pool, as a mixture reads them."""
    log, other = b.engine.feeds["mixed"].parts
    return log, other


def is_pool(batch: Batch, b: Bench) -> torch.Tensor:
    return torch.isin(batch.row_id_B, parts(b)[1].row_ids())


def taken(cursor: Cursor, count: int) -> list[list[int]]:
    return [next(cursor).row_id_B.tolist() for _ in range(count)]


# Ratio and epochs


def test_every_full_batch_has_the_ratio_whatever_the_epochs_of_its_parts(small: Small, pool: Path, group: None) -> None:
    b = mixed(small, pool)
    feed = b.engine.feeds["mixed"]
    steps = feed.steps(256)
    assert steps == -(-small.encoded.rows["train"] // 192)
    for epoch in range(3):
        found = list(feed.epoch(256, seed=0, epoch=epoch))
        assert len(found) == steps
        for batch in found:
            assert int(is_pool(batch, b).sum()) == 64  # also where the pool ends and begins again
        assert {len(batch) for batch in found[:-1]} == {256}
        own = [row for batch in found for row in batch.row_id_B[~is_pool(batch, b)].tolist()]
        assert len(own) == len({*own}) == small.encoded.rows["train"]


@pytest.mark.parametrize("size", [64, 500, 700])
def test_the_second_feed_goes_round_without_gaps(small: Small, pool: Path, group: None, size: int) -> None:
    """Also where a batch asks for more rows than the pool has."""
    b = mixed(small, pool)
    feed = MixFeed(parts(b), (1, 1))
    rows, steps = [], feed.steps(2 * size)
    for epoch in range(4):
        for batch in feed.epoch(2 * size, seed=5, epoch=epoch):
            rows += batch.row_id_B[is_pool(batch, b)].tolist()
    assert len(rows) == 4 * steps * size
    epochs = [feed.parts[1].epoch(size, seed=6, epoch=number) for number in range(len(rows) // POOL_ROWS + 1)]
    expected = [row for epoch in epochs for found in epoch for row in found.row_id_B.tolist()]
    assert rows == expected[: len(rows)]
    whole = len(rows) // POOL_ROWS
    assert whole >= 2
    for k in range(whole):
        assert len({*rows[k * POOL_ROWS : (k + 1) * POOL_ROWS]}) == POOL_ROWS  # each row once in each round


def restarted(feed: MixFeed, batch: int, epochs: int) -> list[int]:
    """The wrong twin: the second feed begins anew in every epoch of the first."""
    found = []
    for epoch in range(epochs):
        zipped = zip(
            feed.parts[0].epoch(batch // 2, seed=0, epoch=epoch), Cursor(feed.parts[1], batch // 2, 1), strict=False
        )
        found += [row for _, second in zipped for row in second.row_id_B.tolist()]
    return found


def test_a_second_feed_that_begins_anew_would_miss_rows(small: Small, pool: Path, group: None) -> None:
    b = mixed(small, pool)
    feed = MixFeed(parts(b)[::-1], (1, 1))  # the log is the second one, and longer
    right = [
        row for epoch in range(9) for batch in feed.epoch(200, seed=0, epoch=epoch)
        for row in batch.row_id_B[~is_pool(batch, b)].tolist()
    ]  # fmt: skip
    wrong = restarted(feed, 200, 9)
    assert len(right) == len(wrong) == 9 * 5 * 100
    assert len({*right}) == 4500 and len({*wrong}) < 1000


@pytest.mark.parametrize(
    ("shares", "batch", "expected"),
    [((3, 1), 256, [192, 64]), ((1, 1, 1), 100, [34, 33, 33]), ((1, 100), 10, [1, 10]), ((1, 1), 1, [1, 1])],
)
def test_sizes_add_up_to_the_batch_where_they_can(shares: tuple[int, ...], batch: int, expected: list[int]) -> None:
    assert MixFeed((NoiseFeed(9),) * len(shares), shares).sizes(batch) == expected


# Places


def feeds(small: Small, pool: Path) -> dict[str, Feed]:
    b = mixed(small, pool)
    return {**b.engine.feeds, "pool": parts(b)[1], "noise": NoiseFeed(1000)}


@pytest.mark.parametrize("name", ["log", "pool", "mixed", "noise"])
def test_a_cursor_goes_on_at_any_point(small: Small, pool: Path, group: None, name: str) -> None:
    feed = feeds(small, pool)[name]
    size = 300 if name in ("pool", "noise") else 1000
    steps = feed.steps(size)
    whole = taken(Cursor(feed, size, 0), 2 * steps + 3)
    for stop in range(2 * steps + 2):
        first = Cursor(feed, size, 0)
        before = taken(first, stop)
        second = Cursor(feed, size, 0)
        second.go_to(first.number, first.taken)
        assert before + taken(second, 2) == whole[: stop + 2], stop
    off = Cursor(feed, size, 0)
    off.go_to(0, 1)
    assert taken(off, 1) != whole[:1]  # one step off is another batch


def test_a_phase_begins_with_an_epoch_that_was_not_begun(small: Small, pool: Path, group: None) -> None:
    cursor = Cursor(feeds(small, pool)["mixed"], 300, 0)
    cursor.begin()
    first = taken(cursor, 2)
    cursor.begin()
    assert (cursor.number, cursor.taken) == (1, 0)
    assert not {*first[0]} & {*first[1]} and taken(cursor, 1)[0] not in first
    cursor.close()


@pytest.mark.parametrize(
    ("everys", "steps"), [((1, 1), 8), ((3, 3), 24), ((2, 1), 8), ((2, 3), 12), ((1, 5), 8)], ids=str
)
def test_an_epoch_is_as_long_as_it_takes_to_read_the_first_feed(
    small: Small, group: None, everys: tuple[int, int], steps: int
) -> None:
    members = {"student": STUDENT, "other": OTHER}
    terms = [BCE, "bce(other.logit, label)"]
    updates = [{"terms": [term], "every": every} for term, every in zip(terms, everys, strict=True)]
    b = Bench.of(small, members, [{"epochs": 1, "updates": updates, **LAST}], train={"batch": 600})
    assert b.engine.planned_steps(b.plan.phases[0]) == steps
    rows: list[int] = []
    for step in range(steps):
        for batch in b.engine._batches(b.plan.phases[0], step).values():
            rows += batch.row_id_B.tolist()
    assert len(rows) == len({*rows}) == small.encoded.rows["train"]


def test_a_feed_of_nothing_is_refused_and_not_waited_for(small: Small, group: None) -> None:
    nothing = Reader(small.encoded, ("train",), Selection(("city",), (), ("reported",)), Thinning(0, 1, 1e-12))
    empty = replace(nothing, log=replace(small.encoded, rows=small.encoded.rows), splits=())
    with pytest.raises(TrainingError, match="feed: holds no rows to train on"):
        next(Cursor(LogFeed(empty), 10, 0))


def test_noise_rows_are_new_in_every_batch_epoch_and_phase() -> None:
    feed = NoiseFeed(1000)
    assert feed.steps(300) == 4 and feed.rows() == 1000 and len(feed.row_ids()) == 0
    cursor = Cursor(feed, 300, 0)
    rows = taken(cursor, 6)
    cursor.begin()
    rows += taken(cursor, 3)
    assert [len(batch) for batch in rows] == [300, 300, 300, 100, 300, 300, 300, 300, 300]
    everything = [row for batch in rows for row in batch]
    assert len({*everything}) == len(everything)


def test_rows_of_several_feeds_are_counted_once(small: Small, pool: Path, group: None) -> None:
    b = mixed(small, pool)
    rows = unique_rows({"pool": parts(b)[1], **b.engine.feeds})
    assert len(rows) == small.encoded.rows["train"] + POOL_ROWS
    assert torch.equal(rows, torch.unique(rows))
    assert len(unique_rows({})) == 0


# What a pool knows and what it lacks


def test_rows_without_a_label_take_part_where_none_is_needed(small: Small, pool: Path, group: None) -> None:
    b = mixed(small, pool)
    batch = next(b.engine.cursors["mixed"])
    rows = is_pool(batch, b)
    assert int(rows.sum()) == 64 and bool(batch.labels["purchase"][rows].isnan().all())
    scene = play(b.cast, ["student", "teacher"], batch, frozenset({"student", "teacher"})).scene
    weights = {term.words: term.losses(scene)[1] for term in b.plan.phases[0].terms}
    assert not bool(weights[BCE][rows].any()) and bool(weights[BCE][~rows].any())
    assert bool((weights[TERMS[2]] == 1).all())
    before = {name: b.state(name) for name in ("student", "teacher")}
    values = b.step(at=Now(0, 4), batch=batch)
    assert all(bool(value.detach().isfinite()) for value in values.values())
    users = batch.serving.ids(("user_id",))[0]
    only_there = torch.tensor(sorted({*users[rows].tolist()} - {*users[~rows].tolist()}))
    moved = b.state("student")["tables.student.user_id"] != before["student"]["tables.student.user_id"]
    assert len(only_there) and bool(moved.any(1)[only_there].all())


def test_a_pool_alone_teaches_without_labels(small: Small, pool: Path, group: None) -> None:
    members = {"student": STUDENT, "teacher": {**TEACHER, "share": {}}}
    updates = [{"terms": TERMS[1:2], "train": "teacher"}, {"terms": TERMS[2:], "feed": "pool"}]
    b = bench(small, pool, {"updates": updates}, members)
    before = b.state("student")
    b.engine.run(0, b.plan.phases[0])
    assert not same(before, b.state("student"))
    assert b.engine.steps_of(b.plan.phases[0]) == b.engine.feeds["log"].steps(256)  # an epoch is one of the first feed


def test_unknown_values_of_a_pool_are_looked_up_as_unknown(small: Small, pool: Path, group: None) -> None:
    b = mixed(small, pool)
    batch = next(iter(parts(b)[1].reader.in_order(POOL_ROWS)))
    raw = pl.read_parquet(pool)
    new = torch.from_numpy((raw["user_id"] >= 10**6).to_numpy().copy())
    users = batch.serving.ids(("user_id",))[0]
    assert 0.4 < float(new.float().mean()) < 0.6
    assert torch.equal(users == UNKNOWN, new)
    assert batch.labels["purchase"].isnan().all() and set(batch.labels) == {"purchase"}


def test_what_a_pool_lacks_of_what_is_read_there_is_named_before_training(
    small: Small, pool: Path, group: None, tmp_path: Path
) -> None:
    bare = without(pool, tmp_path / "bare", "dwell_ms")
    message = "feeds.pool: .*pool.parquet lacks dwell_ms, which teacher read on the feed 'mixed'; add what is missing"
    with pytest.raises(LogError, match=message):
        mixed(small, bare)
    updates = [
        {"terms": [*TERMS[:2], "bce(second.logit, label)"]},
        {"terms": ["soft(third.logit, second.logit)"], "feed": "pool"},
    ]
    members = {"student": STUDENT, "teacher": TEACHER, "second": OTHER, "third": OTHER}
    b = bench(small, bare, {"updates": updates}, members)  # nobody reads it there
    b.engine.run(0, b.plan.phases[0])
    users = without(pool, tmp_path / "users", "user_id")
    with pytest.raises(LogError, match="the spec needs columns that neither the log nor a joined table has: 'user_id'"):
        mixed(small, users)


def test_groups_and_scenarios_that_a_pool_lacks_are_named_as_well(
    small: Small, pool: Path, group: None, tmp_path: Path
) -> None:
    import yaml

    described_spec = yaml.safe_load(Path("feature_specs/marketplace.yaml").read_text())
    described_spec |= {"group": "session", "scenario": "place"}
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(described_spec))
    log = tmp_path / "log.parquet"
    columns = [pl.col("user_id").alias("session"), pl.col("device").alias("place")]
    pl.read_parquet(small.log).with_columns(columns).write_parquet(log)
    other = Small(log, small.encoded, small.job)
    for term, lacking in (
        ("soft_list(student.logit, teacher.logit)", "group"),
        ("soft(student.logit, teacher.logit).rows(equals(scenario, 1))", "scenario"),
    ):
        with pytest.raises(LogError, match=f"lacks the spec's {lacking}, which terms look at on the feed 'mixed'"):
            mixed(other, pool, [*TERMS[:2], term], spec=str(path))


def test_the_shuffled_control_permutes_the_pool_as_well(small: Small, pool: Path, group: None, tmp_path: Path) -> None:
    """Otherwise a teacher would know on the rows of the pool what it must not know."""
    feeds = {"pool": {"log": str(pool)}, "mixed": {"mix": {"log": 3, "pool": 1}}}
    phases = [{"steps": 4, "terms": TERMS, "feed": "mixed", **LAST}]
    job = described(small, {"student": STUDENT, "teacher": TEACHER}, phases, feeds=feeds, privileged=["dwell_ms"])
    parsed, spec = parse_job(job, "job")
    logs = logs_of(small, job)
    from recdistill.distill.compile import compile_job

    found: dict[bool, dict[int, float]] = {}
    for shuffled in (False, True):
        training = Training(compile_job(parsed, spec), parsed.train, Data(logs, logs), 0, shuffled)
        engine = engine_of(training, logs, ("train",), tmp_path / "fit", lambda _: None)
        batch = next(iter(engine.feeds["mixed"].parts[1].reader.in_order(POOL_ROWS)))
        dwell = batch.privileged.floats(("dwell_ms",))[:, 0].tolist()
        found[shuffled] = dict(zip(batch.row_id_B.tolist(), dwell, strict=True))
    assert found[False].keys() == found[True].keys()
    assert sorted(found[False].values()) == sorted(found[True].values())
    kept = sum(found[True][row] == value for row, value in found[False].items() if value != min(found[False].values()))
    assert kept < 10


def test_a_pool_is_encoded_once_and_again_when_it_changes(
    small: Small, pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other processes read it from the cache, so it must not be written again."""
    written: list[str] = []
    original = logs_module.encode
    monkeypatch.setattr(
        logs_module, "encode", lambda spec, log, *a, **k: (written.append(log), original(spec, log, *a, **k))[1]
    )
    own = without(pool, tmp_path / "own")
    feeds = {"pool": {"log": str(own)}}
    job = described(small, {"student": STUDENT}, [{"steps": 1, "terms": [BCE]}], feeds=feeds)
    first, second = logs_of(small, job), logs_of(small, job)
    assert written.count(str(own)) == 1
    assert first.feeds["pool"].folder == second.feeds["pool"].folder
    only = logs_of(small, {**job, "feeds": {"pool": {"log": str(own), "where": {"device": 1}}}}).feeds["pool"]
    assert 0 < only.rows["test"] < first.feeds["pool"].rows["test"] and written.count(str(own)) == 2
    pl.read_parquet(own).head(100).write_parquet(own)
    assert logs_of(small, job).feeds["pool"].rows["test"] == 100
    assert Counter(written)[str(own)] == 3


@pytest.mark.parametrize(
    ("feeds", "feed", "message"),
    [
        ({"pool": {"log": "x", "noise": 5}}, "pool", "a feed names exactly one of log, mix, noise"),
        ({"mixed": {"mix": {"log": 1, "z": 1}}, "z": {"noise": 5}}, "mixed", "feeds.mixed.mix.z: is no feed of rows"),
        ({"mixed": {"mix": {"log": 1, "mixed": 1}}}, "mixed", "feeds.mixed.mix.mixed: is no feed of rows of a log"),
        ({"mixed": {"mix": {"log": 0}}}, "mixed", "feeds.mixed.mix.log"),
        ({"log": {"noise": 5}}, "log", "is the name of the job's own training rows"),
        ({"pool": {"noise": 5, "where": {"a": 1}}}, "pool", "`where` chooses rows of a log"),
        ({}, "poll", "phases.0.feed: no feed 'poll'"),
    ],
)  # fmt: skip
def test_wrong_feeds_are_named(small: Small, feeds: dict[str, Any], feed: str, message: str) -> None:
    found = problems(small, {"student": STUDENT}, [{"steps": 1, "feed": feed, "terms": [BCE]}], feeds=feeds)
    assert any(message in problem for problem in found), found


# Parts of the log


def sharded(small: Small, feeds: dict[str, Any], **more: Any) -> Bench:
    phases = [{"steps": 4, "feed": next(iter(feeds)), "terms": [BCE], **LAST}]
    return Bench.of(small, {"student": STUDENT}, phases, feeds=feeds, **more)


def ids_of(b: Bench, name: str) -> set[int]:
    return {*b.engine.feeds[name].row_ids().tolist()}


def test_shards_have_no_row_in_common_and_none_is_left_over(small: Small, group: None) -> None:
    found = [ids_of(sharded(small, {"part": {"shard": [k, 3]}}), "part") for k in range(3)]
    everything = sharded(small, {"part": {"shard": [0, 3]}}).engine.train
    assert sum(map(len, found)) == len(set().union(*found)) == everything.rows()
    assert all(0.28 < len(ids) / everything.rows() < 0.39 for ids in found)
    half = ids_of(sharded(small, {"part": {"shard": [0, 6]}}), "part")
    assert half < found[0]


def test_a_shard_by_group_holds_whole_groups(small: Small, group: None) -> None:
    frame = small.encoded.labels("train").select("row_id", "group").collect()
    found = [ids_of(sharded(small, {"part": {"shard": [k, 2], "by": "group"}}), "part") for k in range(2)]
    users = [{*frame.filter(pl.col("row_id").is_in(sorted(ids)))["group"]} for ids in found]
    assert not users[0] & users[1] and all(users)
    assert sum(map(len, found)) == len(frame)


def test_a_shard_is_the_same_for_every_seed_and_its_epoch_holds_each_row_once(small: Small, group: None) -> None:
    b = sharded(small, {"part": {"shard": [0, 2]}})
    feed = b.engine.feeds["part"]
    batches = [*feed.epoch(256, seed=3, epoch=1)]
    seen = torch.cat([batch.row_id_B for batch in batches])
    assert len(batches) == feed.steps(256) and len(seen) == feed.rows() == len(seen.unique())
    assert torch.equal(seen.sort().values, feed.row_ids().sort().values)
    training = Training(b.plan, b.job.train, Data.of(small.encoded), 5)
    other = engine_of(training, Logs(small.encoded), ("train",), Path("/nowhere"), lambda _: None)
    assert torch.equal(other.feeds["part"].row_ids(), feed.row_ids())


def test_shards_are_thinned_as_the_log_is_and_can_be_mixed(small: Small, group: None) -> None:
    whole = ids_of(sharded(small, {"part": {"shard": [0, 2]}}), "part")
    b = sharded(small, {"part": {"shard": [0, 2]}}, train={"negative_keep_rate": 0.5})
    assert ids_of(b, "part") < whole
    feeds = {"mixed": {"mix": {"log": 1, "part": 3}}, "part": {"shard": [0, 2]}}
    batch = next(iter(sharded(small, feeds).engine.feeds["mixed"].epoch(256, seed=0, epoch=0)))
    assert {*batch.row_id_B[64:].tolist()} <= whole


@pytest.mark.parametrize(
    ("feed", "message"),
    [
        ({"shard": [2, 2]}, "feeds.part: of 2 shards the last is 1"),
        ({"shard": [0, 1]}, "feeds.part.shard.1"),
        ({"by": "group", "noise": 5}, "feeds.part: `by` says what a shard is made of; name the `shard`"),
        ({"shard": [0, 2], "noise": 5}, "feeds.part: a feed names exactly one of"),
    ],
)
def test_what_a_job_may_not_say_of_a_shard(small: Small, feed: dict[str, Any], message: str) -> None:
    phases = [{"steps": 4, "feed": "part", "terms": [BCE]}]
    assert any(message in each for each in problems(small, {"student": STUDENT}, phases, feeds={"part": feed}))


def test_fewer_sampled_rows_are_among_more_and_every_seed_has_the_same(small: Small, group: None) -> None:
    found = [ids_of(sharded(small, {"part": {"sample": count}}), "part") for count in (1, 5, 300)]
    assert [len(ids) for ids in found] == [1, 5, 300] and found[0] < found[1] < found[2]
    b = sharded(small, {"part": {"sample": 5}})
    training = Training(b.plan, b.job.train, Data.of(small.encoded), 5)
    other = engine_of(training, Logs(small.encoded), ("train",), Path("/nowhere"), lambda _: None)
    assert {*other.feeds["part"].row_ids().tolist()} == found[1]
    thinned = sharded(small, {"part": {"sample": 5}}, train={"negative_keep_rate": 0.5})
    assert ids_of(thinned, "part") < {*thinned.engine.train.row_ids().tolist()}


def test_a_sample_is_read_once_and_met_again_in_another_order(
    small: Small, group: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = sharded(small, {"part": {"sample": 50}}).engine.feeds["part"]
    assert feed.steps(32) == 2 and feed.rows() == 50
    first = [batch.row_id_B.tolist() for batch in feed.epoch(32, seed=0, epoch=0)]
    assert [len(ids) for ids in first] == [32, 18]

    def nothing(*_: Any) -> Any:
        raise AssertionError("reads again")

    monkeypatch.setattr(Reader, "_read", nothing)
    second = [batch.row_id_B.tolist() for batch in feed.epoch(32, seed=0, epoch=1)]
    assert sorted(chain(*first)) == sorted(chain(*second)) and first != second


def test_more_rows_than_there_are_cannot_be_sampled(small: Small, group: None) -> None:
    rows = small.encoded.rows["train"]
    assert sharded(small, {"part": {"sample": rows}}).engine.feeds["part"].rows() == rows
    with pytest.raises(LogError, match=f"asks for {rows + 1} of {rows} training rows"):
        sharded(small, {"part": {"sample": rows + 1}})
