"""Graphs from logs: which events are edges, which nodes stay, and what is refused."""

import datetime as dt
import itertools

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recdistill.data import edges as building
from recdistill.data.edges import available_memory, build_graph, core, estimate
from recdistill.data.encode import encode
from recdistill.data.graph import Graph
from recdistill.data.transforms.rows import FIRST
from recdistill.errors import LogError
from recdistill.spec.features import FeatureSpec
from tests.oracles import graph as oracle

ROWS, USERS, ITEMS = 600, 25, 40
SPEC = {
    "row_id": "key",
    "time": "day",
    "scenario": "tab",
    "split": {"column": "day", "train": ["2024-01-01", "2024-01-20"], "valid": ["2024-01-21", "2024-01-24"],
              "test": ["2024-01-25", "2024-01-28"]},
    "serving": {
        "user": {"type": "id", "min_count": 2},
        "item": {"type": "categorical", "min_count": 3},
        "place": {"type": "categorical"},
        "hashed": {"type": "categorical", "hash": 12},
        "price": {"type": "numeric"},
    },
    "post_event": {"click": "binary", "buy": "binary", "source": {"type": "categorical"}},
}  # fmt: skip


def raw() -> pl.DataFrame:
    rng = np.random.default_rng(5)
    days = [dt.date(2024, 1, 1) + dt.timedelta(int(d)) for d in rng.integers(0, 28, ROWS)]
    item = [None if n == 3 else f"i{n}" for n in (ITEMS * rng.random(ROWS) ** 2).astype(int)]
    return pl.DataFrame(
        {
            "key": np.arange(ROWS), "day": days, "tab": rng.integers(0, 3, ROWS), "user": rng.integers(0, USERS, ROWS),
            "item": item, "place": rng.choice(["Lima", "Oslo"], ROWS), "hashed": rng.integers(0, 50, ROWS),
            "price": rng.normal(size=ROWS), "click": rng.integers(0, 2, ROWS),
            "buy": pl.Series(rng.integers(0, 2, ROWS)).set(pl.Series(rng.random(ROWS) < 0.4), None),
            "source": rng.choice(["feed", "search"], ROWS),
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("graph")
    raw().write_parquet(folder / "log.parquet")
    return encode(FeatureSpec.model_validate(SPEC), str(folder / "log.parquet"), folder / "encoded")


def expected(log, keep, splits=("train",)):
    """Edges by table rows, counted from the raw log."""
    rows = {
        name: {value: FIRST + i for i, value in enumerate(log.fitted.columns[name].rows.values)}
        for name in ("user", "item")
    }
    ranges = {"train": (1, 20), "valid": (21, 24), "test": (25, 28)}
    wanted = [r for r in raw().to_dicts() if any(a <= r["day"].day <= b for a, b in (ranges[s] for s in splits))]
    wanted = [{**r, "u": rows["user"].get(r["user"]), "i": rows["item"].get(r["item"])} for r in wanted]
    return oracle.edges_of(wanted, "u", "i", lambda r: r["u"] is not None and r["i"] is not None and keep(r))


def pairs(graph: Graph) -> list[tuple[int, int]]:
    return list(zip(graph.user_E.tolist(), graph.item_E.tolist(), strict=True))


@pytest.mark.parametrize(
    ("options", "keep"),
    [
        ({}, lambda r: True),
        ({"where": {"click": 1}}, lambda r: r["click"] == 1),
        ({"where": {"buy": 0}}, lambda r: r["buy"] == 0),
        ({"where": {"click": 1, "place": "Oslo"}}, lambda r: r["click"] == 1 and r["place"] == "Oslo"),
        ({"where": {"source": ["feed", "search"], "tab": [0, 2]}}, lambda r: r["tab"] != 1),
        ({"before": dt.date(2024, 1, 9), "where": {"click": 1}}, lambda r: r["day"].day < 9 and r["click"] == 1),
        ({"before": "2024-01-09"}, lambda r: r["day"].day < 9),
    ],
)  # fmt: skip
def test_edges_are_the_pairs_of_events_that_were_asked_for(log, options, keep) -> None:
    assert pairs(build_graph(log, "user", "item", **options)) == expected(log, keep)


def test_other_splits_are_read_only_when_named(log) -> None:
    both = build_graph(log, "user", "item", splits=("train", "valid"))
    assert pairs(both) == expected(log, lambda r: True, ("train", "valid"))
    assert len(both.user_E) > len(build_graph(log, "user", "item").user_E)


def test_unknown_and_missing_values_are_no_nodes(log) -> None:
    graph = build_graph(log, "user", "item")
    assert graph.users == log.fitted.tables["user"] and graph.items == log.fitted.tables["item"]
    assert graph.user_degree_U[:FIRST].tolist() == graph.item_degree_I[:FIRST].tolist() == [0, 0]
    view = log.view("train", "serving").collect()
    assert (view["item"] == 0).any() and (view["item"] == 1).any()


@given(
    st.sets(st.tuples(st.integers(2, 9), st.integers(2, 9)), min_size=1, max_size=40),
    st.integers(1, 4),
    st.integers(1, 4),
)
def test_the_core_is_what_peeling_one_edge_after_the_other_leaves(edges, least_user, least_item) -> None:
    user, item = (torch.tensor(side) for side in zip(*sorted(edges), strict=True))
    found = core(user, item, 10, 10, (least_user, least_item))
    assert list(zip(*(side.tolist() for side in found), strict=True)) == oracle.core(edges, least_user, least_item)


def test_minimum_degrees_hold_in_the_graph(log) -> None:
    graph = build_graph(log, "user", "item", min_degree=(6, 5))
    assert pairs(graph) == oracle.core(expected(log, lambda r: True), 6, 5)
    assert set(graph.user_degree_U[graph.user_degree_U > 0].tolist()) <= set(range(6, 99))
    with pytest.raises(LogError, match=r"no edge is left of \d+ events .* ask for less"):
        build_graph(log, "user", "item", min_degree=(90, 90))


@given(st.sets(st.tuples(st.integers(2, 7), st.integers(2, 9)), min_size=1, max_size=30))
def test_the_normalised_adjacency_equals_the_dense_one(edges) -> None:
    graph = Graph.of(8, 10, *(torch.tensor(side) for side in zip(*edges, strict=True)))
    whole = oracle.adjacency(edges, 8, 10)
    halves = graph.normalised(torch.float64)
    assert np.allclose(halves.user.dense(10).numpy(), whole[:8, 8:], atol=1e-15)
    assert torch.equal(halves.item.dense(8), halves.user.dense(10).t())
    assert graph.normalised().user.weights.dtype == torch.float32


@given(st.sets(st.tuples(st.integers(2, 7), st.integers(2, 9)), min_size=1, max_size=30))
def test_positives_are_the_lists_of_each_side(edges) -> None:
    graph = Graph.of(8, 10, *(torch.tensor(side) for side in zip(*edges, strict=True)))
    users = torch.tensor([7, 0, 2, 2, 5])
    items, offsets = graph.positives.of(users)
    lists = [items[a:b].tolist() for a, b in itertools.pairwise(offsets.tolist())]
    assert lists == [sorted(i for u, i in edges if u == user) for user in users.tolist()]
    assert graph.positives.count(users).tolist() == [len(one) for one in lists]
    everything = torch.arange(10).expand(8, 10)
    contained = graph.positives.contains(torch.arange(8), everything)
    assert {(int(u), int(i)) for u, i in contained.nonzero()} == edges


def test_a_graph_survives_the_disk_without_pickle(log, tmp_path) -> None:
    graph = build_graph(log, "user", "item", where={"click": 1}, before=dt.date(2024, 1, 15))
    graph.save(tmp_path / "deep" / "graph.safetensors")
    again = Graph.load(tmp_path / "deep" / "graph.safetensors")
    assert pairs(again) == pairs(graph) and (again.users, again.items) == (graph.users, graph.items)
    assert again.built["where"] == {"click": 1} and again.built["log"] == log.fingerprint
    assert again.built["before"] == "2024-01-15"
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["graph.safetensors"]
    (tmp_path / "cut").write_bytes((tmp_path / "deep" / "graph.safetensors").read_bytes()[:40])
    for broken in ("cut", "absent"):
        with pytest.raises(LogError, match=r"no readable graph .* build it again"):
            Graph.load(tmp_path / broken)


def test_a_graph_that_does_not_fit_is_refused_with_its_estimate(log, monkeypatch) -> None:
    with pytest.raises(LogError, match=r"events make a graph of about 0.00 GiB, but .* raise limit_bytes"):
        build_graph(log, "user", "item", limit_bytes=1000)
    monkeypatch.setattr(building, "available_memory", lambda: 2**10)
    with pytest.raises(LogError, match="use a larger machine"):
        build_graph(log, "user", "item")


def test_the_estimate_covers_what_the_graph_holds() -> None:
    generator = torch.Generator().manual_seed(0)
    user, item = (torch.randint(2, n, (20_000,), generator=generator) for n in (3000, 500))
    graph = Graph.of(3000, 500, user, item)
    halves = graph.normalised()
    held = [graph.user_E, graph.item_E, *halves.user, *halves.item, graph.user_degree_U, graph.item_degree_I]
    size = sum(t.numel() * t.element_size() for t in held)
    assert size <= estimate(20_000, 3000, 500) <= 3 * size
    assert 2**26 < available_memory() < 2**50


def test_a_permuted_graph_keeps_users_degrees_and_loses_the_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    graph = Graph.of(300, 400, torch.randint(2, 300, (3000,), generator=generator), torch.randint(2, 400, (3000,)))
    control = graph.permuted(1)
    assert len(control.user_E) > 0.95 * len(graph.user_E)
    assert (control.user_degree_U - graph.user_degree_U).abs().max() < 5
    assert len(set(pairs(graph)) & set(pairs(control))) < 0.1 * len(graph.user_E)
    assert pairs(graph.permuted(1)) == pairs(control) != pairs(graph.permuted(2))
    assert control.built["permuted"] == 1


def test_popularity_groups_hold_about_as_many_edges_each() -> None:
    item = torch.repeat_interleave(torch.arange(2, 102), torch.arange(1, 101))
    graph = Graph.of(200, 103, torch.arange(len(item)) % 150 + 2, item)
    group_I = graph.popularity_groups(4)
    edges = torch.bincount(group_I, weights=graph.item_degree_I.double())
    assert edges.numel() == 4 and float(edges.min()) > 0.8 * float(edges.max())
    for g in range(3):
        assert graph.item_degree_I[group_I == g].max() <= graph.item_degree_I[group_I == g + 1].min()
    assert group_I[[0, 1, 102]].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"user": "usr"}, "no serving column .* did you mean 'user'"),
        ({"item": "price"}, "of type numeric, but nodes are single values"),
        ({"where": {"price": 1}}, "raw values are not in the encoded log"),
        ({"where": {"clik": 1}}, "did you mean 'click'"),
        ({"where": {"place": "Rome"}}, r"never was \['Rome'\] in training"),
        ({"where": {"click": "yes"}}, "where: .*click"),
        ({"where": {"buy": None}}, "asks for missing values"),
        ({"splits": ("training",)}, "no rows in the split 'training'"),
        ({"before": "noon"}, "noon"),
    ],
)
def test_what_does_not_suit_is_refused_by_name(log, change, message) -> None:
    with pytest.raises(LogError, match=message):
        build_graph(log, **({"user": "user", "item": "item"} | change))


def test_without_a_time_there_is_no_cut(tmp_path) -> None:
    raw().write_parquet(tmp_path / "log.parquet")
    spec = {k: v for k, v in SPEC.items() if k not in ("time", "split")}
    untimed = encode(FeatureSpec.model_validate(spec), str(tmp_path / "log.parquet"), tmp_path / "encoded")
    with pytest.raises(LogError, match="before needs a time"):
        build_graph(untimed, "user", "item", before=3)


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        (([2, 2], [3, 3]), "each once"),
        (([3, 2], [3, 3]), "sorted"),
        (([1], [3]), r"must lie in \[2, 4\)"),
        (([2], [5]), r"must lie in \[2, 5\)"),
        (([2, 3], [3]), r"of shape \(2,\)"),
    ],
)
def test_edges_of_another_form_are_refused(edges, message) -> None:
    with pytest.raises(LogError, match=message):
        Graph(4, 5, *(torch.tensor(side) for side in edges))
