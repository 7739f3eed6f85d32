"""The embedded log: reproducible, as documented, and with reference scores that are what they claim to be."""

import numpy as np
import polars as pl
import pytest
from scipy import integrate, special, stats

from recdistill.data import simulate as module
from recdistill.data.simulate import Traces, World, posterior, simulate_marketplace
from recdistill.evaluation import auc

TRACES = ["dwell_ms", "reviews_opened", "in_cart"]


def simulated(folder, name="log", **options):
    path = folder / f"{name}.parquet"
    simulate_marketplace(path, **{"rows": 2000, **options})
    return pl.read_parquet(path)


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """The real log and its three twins, with all labels known."""
    folder = tmp_path_factory.mktemp("logs")
    kinds = ("real", "noise", "serving", "label")
    return {kind: simulated(folder, kind, rows=40_000, labelled=1.0, privileged=kind) for kind in kinds}


@pytest.fixture(scope="module")
def clicked(logs):
    return {kind: log.filter(pl.col("click") == 1) for kind, log in logs.items()}


# Reproducible


def test_the_same_seed_writes_the_same_bytes(tmp_path):
    simulated(tmp_path, "a", seed=3)
    simulated(tmp_path, "b", seed=3)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert not simulated(tmp_path, "c", seed=4)["dwell_ms"].equals(simulated(tmp_path, "a", seed=3)["dwell_ms"])


def test_a_log_made_in_chunks_is_one_log(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_ROWS", 700)
    counts = []
    log = simulated(tmp_path, rows=2500, progress=counts.append)
    assert counts == [700, 700, 700, 400]
    assert log["impression_id"].to_list() == list(range(2500))
    assert log["time_ms"].is_sorted()
    assert log["day"].to_list() == [day for day in range(10) for _ in range(250)]
    simulated(tmp_path, "again", rows=2500)
    assert (tmp_path / "again.parquet").read_bytes() == (tmp_path / "log.parquet").read_bytes()
    first, second = (log["user_id"].slice(start, 700) for start in (0, 700))
    assert first.to_list() != second.to_list()


def test_an_interrupted_simulation_leaves_no_log(tmp_path):
    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulated(tmp_path, progress=interrupt)
    assert not (tmp_path / "log.parquet").exists()


def test_a_world_belongs_to_its_seed():
    world = World.draw(users=60, items=50, seed=0)
    again = World.draw(users=60, items=50, seed=0)
    assert np.array_equal(world.user_taste_UK, again.user_taste_UK)
    assert not np.array_equal(world.user_taste_UK, World.draw(users=60, items=50, seed=1).user_taste_UK)


# As documented


def test_impressions_are_spread_over_ten_days_in_order_of_time(logs):
    log = logs["real"]
    days = (pl.col("time_ms") - pl.col("time_ms").min()) // 86_400_000
    assert log.select((days == pl.col("day")).all()).item()
    assert log["day"].value_counts()["count"].to_list() == [4000] * 10
    assert log.select((pl.col("time_ms") // 3_600_000 % 24 == pl.col("hour")).all()).item()


def test_purchases_and_traces_follow_clicks_alone(logs):
    log = logs["real"]
    others = log.filter(pl.col("click") == 0)
    assert 0.2 < len(others) / len(log) < 0.8
    for name in ("purchase", *TRACES, "best_full"):
        assert others[name].unique().to_list() == [0]
    assert log.filter(pl.col("click") == 1)["dwell_ms"].min() > 0


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_the_given_share_of_training_labels_is_known_and_all_later_ones(tmp_path, share):
    log = simulated(tmp_path, rows=10_000, labelled=share)
    known = log.group_by("day").agg(pl.col("purchase").is_not_null().mean()).sort("day")["purchase"].to_list()
    assert np.mean(known[:8]) == pytest.approx(share, abs=0.02)
    assert known[8:] == [1.0, 1.0]
    assert log[TRACES].null_count().row(0) == (0, 0, 0)


def test_the_share_of_known_labels_changes_nothing_else(tmp_path):
    few, all_ = (simulated(tmp_path, str(share), labelled=share) for share in (0.1, 1.0))
    assert few.drop("purchase").equals(all_.drop("purchase"))
    known = few["purchase"].is_not_null()
    assert few["purchase"].filter(known).equals(all_["purchase"].filter(known))


@pytest.mark.parametrize("twin", ["noise", "serving", "label"])
def test_a_twin_differs_in_its_traces_and_their_score_alone(logs, twin):
    changed = [*TRACES, "best_full"]
    assert logs[twin].drop(changed).equals(logs["real"].drop(changed))
    for name in changed:
        assert not logs[twin][name].equals(logs["real"][name])


def test_the_noise_twin_holds_the_traces_of_other_clicked_rows(clicked):
    real, noise = (clicked[kind].select(TRACES) for kind in ("real", "noise"))
    assert sorted(noise.rows()) == sorted(real.rows())
    assert (real["dwell_ms"] == noise["dwell_ms"]).mean() < 0.01
    for name in TRACES:
        assert auc(clicked["noise"]["purchase"], clicked["noise"][name]) == pytest.approx(0.5, abs=0.02)
        assert auc(clicked["real"]["purchase"], clicked["real"][name]) > 0.6


def test_the_traces_of_the_serving_twin_are_a_function_of_serving_columns(clicked):
    distinct = clicked["serving"].group_by("price", "hour", "age_band").agg(pl.col(TRACES).n_unique())
    assert distinct.select(pl.max_horizontal(TRACES).max()).item() == 1
    assert clicked["serving"]["dwell_ms"].n_unique() > 20


def test_the_traces_of_the_label_twin_give_the_label_away(clicked):
    label = clicked["label"]
    assert label["in_cart"].equals(label["purchase"])
    assert auc(label["purchase"], label["dwell_ms"]) > 0.99
    assert auc(label["purchase"], label["best_full"]) == 1


# Reference scores


def exact_posterior(m, dwell_ms, reviews, in_cart):
    """``P(purchase | m, traces)`` by Simpson's rule over the mood, with the exact probability of a whole dwell time."""

    def weight(mood):
        want = m + mood
        centre = 9 + 0.5 * want
        low, high = ((np.log(dwell_ms + k) - centre) / module.DWELL_NOISE for k in (0, 1))
        rate = np.exp(np.clip(0.4 * want - 0.3, -5, 3))
        cart = special.expit(want - 1)
        likelihood = (stats.norm.cdf(high) - stats.norm.cdf(low)) * stats.poisson.pmf(reviews, rate)
        return stats.norm.pdf(mood, scale=module.MOOD) * likelihood * (cart if in_cart else 1 - cart)

    mood_G = np.linspace(-8 * module.MOOD, 8 * module.MOOD, 4001)
    weight_G = weight(mood_G)
    bought_G = special.expit(m + mood_G - module.PURCHASE_BIAS)
    return integrate.simpson(weight_G * bought_G, x=mood_G) / integrate.simpson(weight_G, x=mood_G)


def test_the_posterior_agrees_with_brute_force_integration():
    rng = np.random.default_rng(0)
    m = np.concatenate([rng.normal(0, 1.5, 40), [-4.0, 4.0, 0.0, 0.0]])
    want = m + rng.normal(0, module.MOOD, len(m))
    dwell = np.floor(np.exp(9 + 0.5 * want + rng.normal(0, module.DWELL_NOISE, len(m))))
    reviews, cart = rng.poisson(1.0, len(m)), rng.integers(0, 2, len(m))
    found = posterior(m, Traces(dwell, reviews, cart))
    expected = [exact_posterior(*row) for row in zip(m, dwell, reviews, cart, strict=True)]
    assert found == pytest.approx(expected, abs=1e-4)


def test_the_posterior_of_a_row_without_click_is_zero():
    assert posterior(np.array([3.0]), Traces(np.zeros(1), np.zeros(1, int), np.zeros(1, int))).tolist() == [0]


def test_the_posterior_is_calibrated(clicked):
    rows = clicked["real"].sort("best_full").with_columns(band=pl.int_range(pl.len()) * 8 // pl.len())
    table = rows.group_by("band").agg(p=pl.col("best_full").mean(), y=pl.col("purchase").mean(), n=pl.len())
    assert len(table) == 8
    error = (table["y"] - table["p"]).abs() / (table["p"] * (1 - table["p"]) / table["n"]).sqrt()
    assert error.max() < 4


def test_the_reference_scores_are_in_the_order_of_what_they_know(clicked):
    real = {score: auc(clicked["real"]["purchase"], clicked["real"][score]) for score in ("best_serving", "best_full")}
    assert 0.6 < real["best_serving"] < real["best_full"] - 0.01 < 0.95
    for twin in ("noise", "serving"):
        assert clicked[twin]["best_full"].equals(clicked[twin]["best_serving"])


@pytest.mark.parametrize("name", ["price", "dwell_ms", "reviews_opened", "in_cart"])
def test_no_single_column_beats_the_reference_scores(clicked, name):
    rows = clicked["real"]
    alone = auc(rows["purchase"], rows[name])
    assert max(alone, 1 - alone) < auc(rows["purchase"], rows["best_full"])
