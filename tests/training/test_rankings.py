"""Lists as members make them: vectors, best places, and how good the lists are, against loops over sets."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import settings as tried
from hypothesis import strategies as st

from recdistill.data.graph import Graph
from recdistill.distill.compile import Plan, compile_job, problems_of
from recdistill.distill.schedule import Now
from recdistill.errors import LogError
from recdistill.spec.graph import RankingSpec
from recdistill.spec.load import assign, parse_job
from recdistill.training.engine import Engine
from recdistill.training.fit import engine_of, rankings_of
from recdistill.training.optimizers import dense_optimizers
from recdistill.training.play import play
from recdistill.training.rankings import Rankings, Vectors, top_places, vectors_of
from recdistill.training.reading import Data, Logs, Training
from tests.conftest import Small
from tests.oracles import topk as oracle
from tests.training.bench import problems_of_job
from tests.training.test_resume import everything, stopped_after

USERS, ITEMS = 6, 9
SOME = st.sets(st.tuples(st.integers(2, USERS - 1), st.integers(2, ITEMS - 1)), max_size=14)
NONE = {"controls": {"none": "nothing to compare with"}}


def graph_of(edges: set[tuple[int, int]]) -> Graph:
    sides = [torch.tensor([edge[k] for edge in sorted(edges)], dtype=torch.int64) for k in (0, 1)]
    return Graph.of(USERS, ITEMS, *sides)


def vectors(seed: int, width: int) -> Vectors:
    """Vectors of small whole numbers, so that scores tie; one number makes more ties than two."""
    rng = np.random.default_rng(seed)
    numbers = (rng.integers(-2, 3, (rows, width)) for rows in (USERS, ITEMS))
    return Vectors(*(torch.from_numpy(n.astype(np.float32)) for n in numbers))


def sets(edges: set[tuple[int, int]]) -> list[set[int]]:
    return [{item for user, item in edges if user == each} for each in range(USERS)]


@tried(max_examples=40)
@given(wanted=SOME, known=SOME, seed=st.integers(0, 50), width=st.integers(1, 2))
def test_full_rankings_are_the_mean_over_all_orders_of_ties(wanted, known, seed, width) -> None:
    spec, made = RankingSpec(metric="recall@2", at=[2, 4]), vectors(seed, width)
    found = Rankings.of(spec, graph_of(wanted), graph_of(known)).judge(made, [3])
    scores = (made.user_UD @ made.item_ID.t()).tolist()
    users, coverage = oracle.full_ranking(
        scores, sets(wanted), sets(known), range(2, ITEMS), [2, 3, 4], "expected"
    )  # fmt: skip
    assert found.user_V.tolist() == sorted(users)
    for name, value_V in found.values.items():
        assert value_V.tolist() == pytest.approx([users[user][name] for user in sorted(users)])
    if users:
        assert dict(found.coverage) == pytest.approx(coverage)


@tried(max_examples=30)
@given(
    wanted=st.dictionaries(st.integers(2, USERS - 1), st.integers(2, ITEMS - 1), min_size=1), known=SOME,
    seed=st.integers(0, 50), draws=st.integers(1, 3),
)  # fmt: skip
def test_sampled_rankings_are_lists_of_the_held_out_item_and_others_never_taken(wanted, known, seed, draws) -> None:
    relevant = {*wanted.items()}
    taken = known | relevant
    spec = RankingSpec.model_validate({"metric": "hr@2", "at": [2], "sampled": {"others": 2, "draws": draws}})
    if any(len({item for user, item in taken if user == each}) > ITEMS - 4 for each in wanted):
        return  # nobody left to draw: see `test_topk`
    rankings, made = Rankings.of(spec, graph_of(relevant), graph_of(known), graph_of(taken)), vectors(seed, 1)
    found = rankings.judge(made)
    assert rankings.sampled is not None
    users, held_out, others = rankings.sampled
    assert users.tolist() == found.user_V.tolist() == sorted(wanted)
    for v, user in enumerate(users.tolist()):
        assert held_out[v] == wanted[user]
        expected = []
        for draw in range(draws):
            drawn = others[draw, v].tolist()
            assert len({*drawn}) == 2 and not {(user, item) for item in drawn} & taken and min(drawn) >= 2
            row = {item: float(made.user_UD[user] @ made.item_ID[item]) for item in (*drawn, wanted[user])}
            each = [oracle.metrics_of(order, {wanted[user]}, 2) for order in oracle.orders(row, [*row])]
            expected.append({name: np.mean([one[name] for one in each]) for name in each[0]})
        for name in ("recall", "ndcg", "hr", "mrr"):
            assert found.values[f"{name}@2"][v] == pytest.approx(np.mean([one[name] for one in expected]))


def test_a_user_with_two_held_out_items_is_refused_where_one_is_ranked_among_others() -> None:
    spec = RankingSpec.model_validate({"metric": "hr@2", "at": [2], "sampled": {"others": 2}})
    with pytest.raises(LogError, match="several held-out items"):
        Rankings.of(spec, graph_of({(2, 3), (2, 4)}), graph_of(set()))


@given(edges=SOME, seed=st.integers(0, 50), anchor=st.sampled_from(["user", "item"]), count=st.integers(1, 12))
def test_the_best_places_are_those_of_a_sorted_list_without_what_is_taken(edges, seed, anchor, count) -> None:
    generator, graph = torch.Generator().manual_seed(seed), graph_of(edges)
    made = Vectors(torch.randn(USERS, 3, generator=generator), torch.randn(ITEMS, 3, generator=generator))
    sides = graph if anchor == "user" else graph.flipped()
    found = top_places(made, sides.positives, anchor, count)
    scores = made.of(anchor) @ made.of("item" if anchor == "user" else "user").t()
    for row in range(sides.users):
        taken = (
            {other for mine, other in edges if mine == row} if anchor == "user" else {u for u, i in edges if i == row}
        )
        left = [other for other in range(2, sides.items) if other not in taken]
        expected = sorted(left, key=lambda other: -float(scores[row, other]))[:count]
        width = min(count, sides.items)
        assert found[row].tolist() == expected + [-1] * (width - len(expected))


# Of members, on a log


def built_of(tastes: Small, changes: dict[str, Any]) -> tuple[Engine, Plan]:
    job, spec = parse_job(assign(tastes.job, {**NONE, **changes}, "test"), "test", check=problems_of)
    training = Training(compile_job(job, spec), job.train, Data.of(tastes.encoded), 0)
    return engine_of(training, Logs(tastes.encoded), ("train",), Path("/nowhere"), lambda _: None), training.plan


def engine(tastes: Small, changes: dict[str, Any] | None = None) -> Engine:
    return built_of(tastes, changes or {})[0]


def described(rows: pl.DataFrame, log: Any, name: str) -> list[int]:
    """The table row of each raw value, 1 for unknown ones."""
    values = log.fitted.columns[name].rows.values.to_list()
    return [values.index(value) + 2 if value in values else 1 for value in rows[name].to_list()]


@pytest.mark.parametrize("split", ["valid", "test"])
def test_what_is_wanted_and_known_are_the_events_of_the_log(tastes: Small, split: str) -> None:
    job, spec = parse_job(assign(tastes.job, NONE, "test"), "test")
    rankings = rankings_of(compile_job(job, spec), tastes.encoded, split)
    assert rankings is not None
    rows, number = pl.read_parquet(tastes.log), {"valid": 1, "test": 2}[split]
    pairs = list(
        zip(described(rows, tastes.encoded, "user_id"), described(rows, tastes.encoded, "item_id"), strict=True)
    )
    parts = rows["part"].to_list()
    for lists, mine in ((rankings.relevant, lambda p: p == number), (rankings.known, lambda p: p < number)):
        wanted = {pair for pair, part in zip(pairs, parts, strict=True) if mine(part) and 1 not in pair}
        users = np.repeat(np.arange(lists.users), lists.count())
        assert {*zip(users.tolist(), lists.item_E.tolist(), strict=True)} == wanted
    assert rankings.candidate_I.tolist() == [False] * 2 + [True] * (tastes.encoded.fitted.tables["item_id"] - 2)


@pytest.mark.parametrize("member", ["gcn", "student"])
def test_the_product_of_vectors_is_the_logit_of_the_pair(tastes: Small, group: None, member: str) -> None:
    """Whatever a pair is: what describes users and items alone never changes in this log."""
    built = engine(tastes)
    made = vectors_of(built.cast, member, seed=0)
    (batch,) = list(built.train.in_order(10**6))
    with torch.no_grad():
        logits = play(built.cast, [member], batch)[member].logits_BK[:, 0]
        bias = float(dict(built.cast.heads[member].named_parameters()).get("net.towers.bias", torch.zeros(1)))
    user_B, item_B = batch.serving.ids(("user_id", "item_id")).long()
    products = (made.user_UD[user_B] * made.item_ID[item_B]).sum(1) + bias
    assert torch.allclose(products, logits, atol=1e-5) and float(logits.std()) > 1e-4


RANKED = {"feeds.lists.candidates.ranked": {"by": "gcn", "top": 12, "count": 4}, "train.checkpoint_every": 2}


def test_training_on_candidates_goes_on_bit_for_bit(tastes: Small, tmp_path: Path, monkeypatch: Any) -> None:
    """Stopped in a phase whose candidates come from the ranking of a member that has moved before and rests now."""
    tastes.fit(tmp_path / "whole", RANKED)
    stopped_after(tastes, tmp_path / "parts", 9, RANKED, monkeypatch)
    tastes.fit(tmp_path / "parts", RANKED)
    assert everything(tmp_path / "parts") == everything(tmp_path / "whole")


def test_a_snapshot_of_a_member_on_a_graph_answers_by_what_it_has_copied(tastes: Small, group: None) -> None:
    """Within a phase, where the vectors that its graph makes are kept as long as it rests, and no longer."""
    terms = ["bpr(gcn.scores, own)", "soft_sides(gcn.scores, old.scores, taken)"]
    built, plan = built_of(tastes, {"members.old": {"snapshot": {"of": "gcn", "every": 2}}, "phases.0.terms": terms})
    phase = plan.phases[0]
    built._begin(0, phase)
    optimizers = [dense_optimizers(update.parts, built.cast, built.settings.dense) for update in phase.updates]
    for step in range(5):
        built.step(phase, built._batches(phase, step), Now(step, 6), optimizers)
        built.followers.step_taken(step + 1, 6, phase)
        if step > 0:
            old, gcn = (vectors_of(built.cast, name, seed=0).user_UD for name in ("old", "gcn"))
            assert torch.equal(old, gcn) == ((step + 1) % 2 == 0), step


def test_training_moves_who_is_taught_and_its_lists_get_better(tastes: Small, tmp_path: Path) -> None:
    changes = {"phases.0.steps": 120, "phases.0.stop": {"every": 40}, "train.tables": {"rowwise_adagrad": {"lr": 0.3}}}
    tastes.fit(tmp_path / "run", changes)
    lists = pl.read_parquet(tmp_path / "run" / "rankings" / "gcn.test.parquet")
    assert float(lists["recall@5"].mean()) > 1.5 * 5 / 38  # type: ignore[arg-type]  # of chance among what is left


def test_a_graph_larger_than_memory_is_refused_with_its_estimate(tastes: Small, monkeypatch: Any, group: None) -> None:
    from recdistill.data import edges

    monkeypatch.setattr(edges, "available_memory", lambda: 10_000)
    with pytest.raises(LogError, match=r"make a graph of about 0\.00 GiB"):
        engine(tastes)


def test_the_cut_of_a_stop_rule_need_not_be_one_of_the_ranking(tastes: Small, group: None) -> None:
    assert problems_of_job(tastes.job, {"train.stop": {"monitor": "ndcg@3"}}) == []
    built = engine(tastes)
    assert built.rankings is not None
    assert "ndcg@3" in built.rankings.judge(vectors_of(built.cast, "gcn", seed=0), [3]).values
