"""Metrics of the K best items against every order of ties written out; sampled candidates; paired comparisons."""

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from recdistill.errors import MetricError
from recdistill.evaluation.paired import compare_users
from recdistill.evaluation.places import best
from recdistill.evaluation.topk import Lists, TopK, draw_candidates, full_ranking, sampled_ranking
from tests.oracles import topk as oracle

USERS, ITEMS, CUTS = 4, 6, (1, 2, 3, 5, 9)
PAIRS = st.sets(st.tuples(st.integers(0, USERS - 1), st.integers(0, ITEMS - 1)), max_size=14)
SCORES = st.lists(st.lists(st.integers(-1, 1), min_size=ITEMS, max_size=ITEMS), min_size=USERS, max_size=USERS)


def lists_of(pairs, users=USERS) -> Lists:
    user, item = zip(*pairs, strict=True) if pairs else ((), ())
    return Lists.of(users, user, item)


def sets_of(pairs, users=USERS):
    return [{i for u, i in pairs if u == user} for user in range(users)]


@given(SCORES, PAIRS, PAIRS, st.sets(st.integers(0, ITEMS - 1), min_size=1), st.sampled_from(["expected", "row"]))
@settings(deadline=None, max_examples=150)
def test_every_metric_is_its_mean_over_all_orders_of_ties(scores, relevant, known, candidates, ties) -> None:
    table, candidate_I = np.array(scores, np.float32), np.isin(np.arange(ITEMS), list(candidates))
    found = full_ranking(
        lambda users: table[users], lists_of(relevant), lists_of(known), candidate_I=candidate_I, at=CUTS, ties=ties,
        batch=3,
    )  # fmt: skip
    users, coverage = oracle.full_ranking(scores, sets_of(relevant), sets_of(known), sorted(candidates), CUTS, ties)
    assert found.user_V.tolist() == sorted(users)
    for name, value_V in found.values.items():
        assert value_V.tolist() == pytest.approx([users[u][name] for u in sorted(users)], abs=1e-12), name
    assert found.coverage == pytest.approx(coverage, abs=1e-12)


@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
@settings(deadline=None, max_examples=30)
def test_without_ties_both_rules_are_the_plain_metrics(seed, cut) -> None:
    rng = np.random.default_rng(seed)
    table = rng.permutation(50 * 30).reshape(30, 50).astype(np.float64)
    test = Lists.of(30, rng.integers(0, 30, 90), rng.integers(0, 50, 90))
    train = Lists.of(30, rng.integers(0, 30, 200), rng.integers(0, 50, 200))
    expected, by_row = (
        full_ranking(lambda u: table[u], test, train, candidate_I=np.ones(50, bool), at=[cut], ties=ties)
        for ties in ("expected", "row")
    )
    assert expected.means() == pytest.approx(by_row.means(), abs=1e-12)


def test_row_order_and_names_of_items_do_not_matter_to_expected_values() -> None:
    rng = np.random.default_rng(0)
    table = rng.integers(0, 5, (20, 40)).astype(float)
    pairs = [(int(u), int(i)) for u, i in zip(rng.integers(0, 20, 80), rng.integers(0, 40, 80), strict=True)]
    order = rng.permutation(40)  # item order[i] is called i now
    named = np.argsort(order)
    some = np.ones(40, bool)
    first = full_ranking(lambda u: table[u], lists_of(pairs[:40], 20), lists_of(pairs[40:], 20), candidate_I=some)
    moved = [(u, int(named[i])) for u, i in pairs]
    again = full_ranking(
        lambda u: table[u][:, order], lists_of(moved[:40], 20), lists_of(moved[40:], 20), candidate_I=some
    )
    assert again.means() == pytest.approx(first.means(), abs=1e-12)


def test_a_row_order_flatters_codes_when_frequent_items_come_first() -> None:
    """Why expected values are the rule: a score that says nothing still finds popular items by their row."""
    rng = np.random.default_rng(0)
    chance = 1 / np.arange(1, 101)
    test = Lists.of(200, np.repeat(np.arange(200), 5), rng.choice(100, 1000, p=chance / chance.sum()))
    found = {
        ties: full_ranking(lambda u: np.zeros((len(u), 100)), test, Lists.of(200, [], []),
                           candidate_I=np.ones(100, bool), at=[10], ties=ties).means()["recall@10"]
        for ties in ("expected", "row")
    }  # fmt: skip
    assert found["expected"] == pytest.approx(0.1, abs=1e-12)
    assert found["row"] > 0.4


def test_the_batch_changes_nothing() -> None:
    rng = np.random.default_rng(1)
    table = rng.integers(0, 9, (50, 80)).astype(np.float32)
    test, train = (Lists.of(50, rng.integers(0, 50, n), rng.integers(0, 80, n)) for n in (120, 300))
    found = [full_ranking(lambda u: table[u], test, train, candidate_I=np.ones(80, bool), batch=b) for b in (1, 7, 64)]
    assert found[0].means() == pytest.approx(found[1].means(), abs=1e-14)
    assert all(np.array_equal(found[1].values[n], found[2].values[n]) for n in found[1].values)


def test_what_cannot_be_shown_is_never_found_but_counts() -> None:
    table = np.array([[9.0, 8, 7, 6]])
    found = full_ranking(
        lambda u: table[u], Lists.of(1, [0, 0], [0, 2]), Lists.of(1, [], []), at=[2],
        candidate_I=np.array([False, True, True, True]),
    )  # fmt: skip
    assert found.means()["recall@2"] == 0.5
    assert found.means()["ndcg@2"] == pytest.approx(1 / math.log2(3) / (1 + 1 / math.log2(3)))
    assert found.coverage["coverage@2"] == pytest.approx(2 / 3)


def test_users_with_nothing_to_find_are_left_out() -> None:
    nothing = Lists.of(3, [], [])
    found = full_ranking(lambda u: np.zeros((len(u), 4)), nothing, nothing, candidate_I=np.ones(4, bool), at=[2])
    assert len(found.user_V) == 0 and math.isnan(found.means()["recall@2"])
    assert found.coverage == {"coverage@2": 0.0}
    known = Lists.of(3, [1], [2])
    again = full_ranking(lambda u: np.zeros((len(u), 4)), known, known, candidate_I=np.ones(4, bool), at=[2])
    assert len(again.user_V) == 0


@pytest.mark.parametrize(
    ("score", "options", "message"),
    [
        (np.zeros((1, 3)), {}, r"expected scores of shape \(1, 4\), found \(1, 3\)"),
        (np.array([[0, np.nan, 0, np.inf]]), {}, "2 of 4 scores are NaN or infinite"),
        (np.zeros((1, 4)), {"at": [0, 5]}, "cuts must be positive"),
        (np.zeros((1, 4)), {"at": []}, "cuts must be positive"),
    ],
)
def test_unusable_scores_and_cuts_are_refused(score, options, message) -> None:
    with pytest.raises(MetricError, match=message):
        full_ranking(
            lambda u: score, Lists.of(1, [0], [1]), Lists.of(1, [], []), candidate_I=np.ones(4, bool), **options
        )


def test_scores_are_not_written_to() -> None:
    table = np.ones((1, 4))
    full_ranking(lambda u: table, Lists.of(1, [0], [1]), Lists.of(1, [0], [2]), candidate_I=np.arange(4) > 0, at=[2])
    assert (table == 1).all()


def test_a_large_log_takes_seconds() -> None:
    rng = np.random.default_rng(0)
    users, items = 600, 20_000
    vectors = rng.normal(size=(users, 16)).astype(np.float32), rng.normal(size=(items, 16)).astype(np.float32)
    test, train = (Lists.of(users, rng.integers(0, users, n), rng.integers(0, items, n)) for n in (6000, 60_000))
    start = time.perf_counter()
    codes = tuple(np.sign(v) for v in vectors)
    for user, item in (vectors, codes):
        full_ranking(lambda u, a=user, b=item: a[u] @ b.T, test, train, candidate_I=np.ones(items, bool), at=[20, 100])
    assert time.perf_counter() - start < 10


@given(PAIRS, PAIRS)
@settings(deadline=None)
def test_lists_are_sets_of_pairs(first, second) -> None:
    a, b = lists_of(first), lists_of(second)
    for found, expected in ((a, first), (a.joined(b), first | second), (a.without(b), first - second)):
        row, item = found.pairs(np.arange(USERS))
        assert list(zip(row.tolist(), item.tolist(), strict=True)) == sorted(expected)
        assert found.count().tolist() == [len(s) for s in sets_of(expected)]
    row, item = a.pairs(np.array([2, 0]))
    assert list(zip(row.tolist(), item.tolist(), strict=True)) == [
        (place, i) for place, user in enumerate((2, 0)) for i in sorted(sets_of(first)[user])
    ]


@given(st.lists(st.lists(st.integers(-2, 2), min_size=7, max_size=7), min_size=1, max_size=4), st.integers(1, 9))
@settings(deadline=None)
def test_the_best_are_those_of_a_stable_sort(scores, count) -> None:
    table = np.where(np.array(scores) == -2, -np.inf, np.array(scores, float))
    expected = [[i for i in np.argsort(-row, kind="stable") if row[i] > -np.inf][:count] for row in table]
    found = best(table, count)
    assert found.tolist() == [[int(i) for i in row] + [-1] * (count - len(row)) for row in expected]


def sampled(scores, held_out, candidates, **options):
    return sampled_ranking(
        lambda u, i: np.take_along_axis(scores[u], i, 1), np.arange(len(held_out)), held_out, candidates, **options
    )


@given(SCORES, st.integers(0, 2**32 - 1), st.sampled_from(["expected", "row"]))
@settings(deadline=None, max_examples=50)
def test_sampled_candidates_are_a_small_full_ranking(scores, seed, ties) -> None:
    rng, table = np.random.default_rng(seed), np.array(scores, float)
    held_out = rng.integers(0, ITEMS, USERS)
    others = [[rng.choice(np.delete(np.arange(ITEMS), i), 3, replace=False) for i in held_out] for _ in range(2)]
    found = sampled(table, held_out, np.array(others), at=CUTS, ties=ties, batch=3)
    for user, item in enumerate(held_out.tolist()):
        each: dict[str, list[float]] = {name: [] for name in found.values}
        for draw in others:
            items = [item, *draw[user].tolist()]
            orders = list(oracle.orders(scores[user], items))
            for order in orders if ties == "expected" else [oracle.by_row(scores[user], items)] * len(orders):
                for cut in CUTS:
                    for metric, value in oracle.metrics_of(order, {item}, cut).items():
                        each[f"{metric}@{cut}"].append(value / len(orders) / len(others))
        for name, value_V in found.values.items():
            assert value_V[user] == pytest.approx(sum(each[name]), abs=1e-12), name


def test_candidates_are_drawn_without_replacement_from_what_was_never_taken() -> None:
    rng = np.random.default_rng(0)
    taken = Lists.of(30, rng.integers(0, 30, 200), rng.integers(0, 60, 200))
    candidate_I = np.arange(60) >= 2
    users = np.array([29, 3, 11])
    found = draw_candidates(users, taken, candidate_I, 20, draws=400, seed=1)
    assert found.shape == (400, 3, 20)
    for v, user in enumerate(users):
        left = sorted(set(range(2, 60)) - set(taken.item_E[taken.offsets[user] : taken.offsets[user + 1]].tolist()))
        assert all(len(set(row)) == 20 for row in found[:, v].tolist())
        counts = np.bincount(found[:, v].ravel(), minlength=60)
        assert set(np.flatnonzero(counts)) == set(left)
        # without replacement counts vary less than in independent draws, so the test is on the safe side
        assert stats.chisquare(counts[left]).pvalue > 1e-3
    assert np.array_equal(draw_candidates(users[1:], taken, candidate_I, 20, draws=400, seed=1), found[:, 1:])
    assert not np.array_equal(draw_candidates(users, taken, candidate_I, 20, draws=400, seed=2), found)
    with pytest.raises(MetricError, match=r"58 items are to be drawn for user 29, who has only \d+ left"):
        draw_candidates(users, taken, candidate_I, 58)


def test_a_random_score_hits_as_often_as_chance() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random((3000, 600))
    users, held_out = np.arange(3000), rng.integers(0, 600, 3000)
    taken = Lists.of(3000, users, held_out)
    candidates = draw_candidates(users, taken, np.ones(600, bool), 499, draws=2)
    found = sampled(scores, held_out, candidates, at=[5, 50])
    assert found.means()["hr@50"] == pytest.approx(0.1, abs=0.01)
    assert found.values["hr@50"].tolist() == found.values["recall@50"].tolist()
    flat = sampled(np.zeros((3000, 600)), held_out, candidates, at=[5, 50])
    assert flat.means()["hr@50"] == pytest.approx(0.1, abs=1e-12)  # all tied: chance itself
    with pytest.raises(MetricError, match="expected one held-out item"):
        sampled(scores, held_out, candidates[:, :10])


def test_a_paired_comparison_is_students_test_on_the_users() -> None:
    rng = np.random.default_rng(0)
    users = np.arange(4000)
    a, b = rng.random(4000), rng.random(4000)
    one = compare_users([TopK(users, {"hr@5": a})], [TopK(users, {"hr@5": b})], "hr@5")
    assert one.delta == pytest.approx((a - b).mean())
    assert one.p_value == pytest.approx(stats.ttest_rel(a, b).pvalue, abs=1e-3)
    assert one.test == "paired over users, normal" and one.seeds == 1
    better = [TopK(users, {"hr@5": b + 0.1 + 0.01 * s}) for s in range(3)]
    three = compare_users(better, [TopK(users, {"hr@5": b})] * 3, "hr@5")
    assert three.delta == pytest.approx(0.11) and three.p_value < 0.01
    assert three.noise.seed_variance == pytest.approx(0.0001 / 3)


def test_noise_of_users_does_not_fall_with_seeds() -> None:
    rng = np.random.default_rng(0)
    users, difference = np.arange(500), rng.normal(size=500)
    zero = TopK(users, {"hr@5": np.zeros(500)})
    widths = [
        compare_users([TopK(users, {"hr@5": difference})] * seeds, [zero] * seeds, "hr@5").noise.standard_error
        for seeds in (1, 8)
    ]
    assert widths[0] == pytest.approx(widths[1])


@pytest.mark.parametrize(
    ("a", "b", "metric", "message"),
    [
        ([0, 1], [0, 2], "hr@5", "need the same users"),
        ([0, 1], [0, 1, 2], "hr@5", "need the same users"),
        ([0, 1], [0, 1], "hr@7", "'hr@7' was not measured; known: hr@5"),
        ([0, 1], None, "hr@5", "same seeds, at least one, but a has 1 and b 0"),
    ],
)
def test_what_cannot_be_compared_is_refused(a, b, metric, message) -> None:
    systems = [[TopK(np.array(u), {"hr@5": np.zeros(len(u))})] if u is not None else [] for u in (a, b)]
    with pytest.raises(MetricError, match=message):
        compare_users(*systems, metric)
