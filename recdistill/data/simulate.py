"""The embedded log: a simulated marketplace whose best achievable AUCs are known.

A row is an impression. From users, items and context, which are logged, follows an interest ``m``; each visit adds a
mood ``e`` that nobody logs:

    click     ~ Bernoulli(sigmoid(interest in looking))          independent of the mood
    purchase  ~ Bernoulli(sigmoid(m + e - 1.6))                  among clicked rows
    dwell_ms, reviews_opened, in_cart                            noisy traces of m + e, logged after the click

So post-click columns tell what no serving column can, without being the label: the mood, and the interest with less
noise than a 0/1 label has. The purchase label of most training rows is still null (late conversions) while their
post-click behaviour is known.

``reported`` is the purchase as a careless counter reports it: known for all clicked rows, and wrong in one of five.
``next_0`` to ``next_5`` say which of six things the visitor looks for next; exactly one of them is 1. ``visit_id``
numbers what one user saw on one day: some forty rows that competed with each other.

Two reference scores are logged: ``best_serving`` ranks by m, which is the best that serving columns allow, since the
mood is independent of them; ``best_full`` is ``P(purchase | serving columns, post-click columns)`` by numerical
integration over the mood.

Three twins replace the post-click columns: by noise, by functions of serving columns, or by the label in disguise.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy import special

from recdistill.publish import published

CHUNK_ROWS = 100_000
DAYS = 10
TRAIN_DAYS = 8  # the label of later rows is always known
DAY_MS = 86_400_000
LATENT = 3
CATEGORIES, CITIES, AGES, DEVICES = 12, 20, 6, 4
INTENTS = 6
MISREPORTED = 0.2
VERSION = 3  # of the columns; logs of an older one are not taken from the cache
MOOD, DWELL_NOISE, PURCHASE_BIAS = 0.8, 0.5, 1.6

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class World:
    """Users and items with what they are like; drawn once per seed."""

    user_taste_UK: Floats
    user_bias_U: Floats
    user_city_U: Ints
    user_age_U: Ints
    item_taste_IK: Floats
    item_quality_I: Floats
    item_price_I: Floats
    item_category_I: Ints
    age_category: Floats
    city_category: Floats
    hour_category: Floats
    age_thrift: Floats

    @classmethod
    def draw(cls, users: int, items: int, seed: int) -> "World":
        """A world of some size."""
        rng = np.random.default_rng([seed, 1])
        return cls(
            user_taste_UK=rng.normal(0, 0.5, (users, LATENT)),
            user_bias_U=rng.normal(0, 0.3, users),
            user_city_U=rng.integers(0, CITIES, users),
            user_age_U=rng.integers(0, AGES, users),
            item_taste_IK=rng.normal(0, 0.5, (items, LATENT)),
            item_quality_I=rng.normal(0, 0.5, items),
            item_price_I=np.exp(rng.normal(3, 0.8, items)),
            item_category_I=rng.integers(0, CATEGORIES, items),
            age_category=rng.normal(0, 0.9, (AGES, CATEGORIES)),
            city_category=rng.normal(0, 0.5, (CITIES, CATEGORIES)),
            hour_category=rng.normal(0, 0.3, (24, CATEGORIES)),
            age_thrift=rng.normal(0.5, 0.4, AGES),
        )


def simulate_marketplace(
    path: Path,
    *,
    rows: int,
    seed: int = 0,
    labelled: float = 0.1,
    privileged: str = "real",
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Write a marketplace log of any number of rows, in bounded memory, ordered by time.

    Args:
        path: the parquet file to write; it appears only when it is complete.
        rows: number of impressions.
        seed: the same seed writes the same bytes.
        labelled: share of the training rows (the first 8 of 10 days) whose purchase is known already.
        privileged: ``real``, or a twin: ``noise``, ``serving``, ``label``.
        progress: called with the number of rows after each chunk.
    """
    world = World.draw(users=max(50, rows // 400), items=max(40, rows // 800), seed=seed)
    writer: pq.ParquetWriter | None = None
    with published(path) as work:
        for chunk, start in enumerate(range(0, rows, CHUNK_ROWS)):
            count = min(CHUNK_ROWS, rows - start)
            rngs = [np.random.default_rng([seed, stream, chunk]) for stream in (2, 3)]
            table = _chunk(world, np.arange(start, start + count), rows, rngs, labelled, privileged)
            writer = writer or pq.ParquetWriter(work, table.schema)
            writer.write_table(table)
            progress(count)
        assert writer is not None
        writer.close()


@dataclass(frozen=True)
class Visits:
    """What happened on some rows."""

    user: Ints
    item: Ints
    hour: Ints
    device: Ints
    clicked: NDArray[np.bool_]
    bought: NDArray[np.bool_]
    interest: Floats
    mood: Floats


@dataclass(frozen=True)
class Traces:
    """The post-click columns; zero where nobody clicked."""

    dwell_ms: Floats
    reviews: Ints
    in_cart: Ints


def _chunk(
    world: World, number: Ints, rows: int, rngs: list[np.random.Generator], labelled: float, privileged: str
) -> pa.Table:
    rng, further = rngs
    time_ms = 1_700_000_000_000 // DAY_MS * DAY_MS + number * (DAYS * DAY_MS // rows)
    day = number * DAYS // rows
    visits = _visit(world, time_ms // 3_600_000 % 24, rng)
    traces = _traces(visits, rng)
    best_full: NDArray[Any] = posterior(visits.interest, traces)
    if privileged != "real":
        traces = TWINS[privileged](world, visits, traces, rng)
        best_full = visits.bought * 1.0 if privileged == "label" else special.expit(visits.interest - PURCHASE_BIAS)
    flipped = further.random(len(number)) < MISREPORTED
    intent = _intent(world, visits, further)
    unknown = (day < TRAIN_DAYS) & (rng.random(len(number)) >= labelled)
    return pa.table(
        {
            "impression_id": number,
            "time_ms": time_ms,
            "day": day.astype(np.int32),
            "user_id": visits.user,
            "visit_id": visits.user * DAYS + day,
            "item_id": visits.item,
            "category": pa.array([f"category_{c}" for c in world.item_category_I[visits.item]]),
            "city": pa.array([f"city_{c}" for c in world.user_city_U[visits.user]]),
            "age_band": world.user_age_U[visits.user].astype(np.int8),
            "price": world.item_price_I[visits.item],
            "hour": visits.hour.astype(np.int8),
            "device": visits.device.astype(np.int8),
            "click": visits.clicked.astype(np.int8),
            "dwell_ms": traces.dwell_ms.astype(np.int64),
            "reviews_opened": traces.reviews.astype(np.int32),
            "in_cart": traces.in_cart.astype(np.int8),
            "purchase": pa.array(visits.bought.astype(np.int8), mask=unknown),
            "reported": pa.array((visits.bought ^ flipped).astype(np.int8), mask=~visits.clicked),
            **{f"next_{k}": (intent == k).astype(np.int8) for k in range(INTENTS)},
            "best_serving": special.expit(visits.interest - PURCHASE_BIAS),
            "best_full": best_full,
        }
    )


def _visit(world: World, hour: Ints, rng: np.random.Generator) -> Visits:
    """Who met what, and what came of it."""
    rows, users, items = len(hour), len(world.user_bias_U), len(world.item_price_I)
    user = (np.minimum(rng.zipf(1.3, rows), 10**9) - 1 + rng.integers(0, users, rows)) % users
    item = (rng.beta(1, 2.5, rows) * items).astype(np.int64)
    device = rng.integers(0, DEVICES, rows)
    category = world.item_category_I[item]
    looks = 0.5 * world.item_quality_I[item] + 0.3 * (device == 1) + world.hour_category[hour, category] - 0.2
    clicked = rng.random(rows) < special.expit(looks)
    m = interest(world, user, item, hour, device)
    mood = rng.normal(0, MOOD, rows)
    bought = clicked & (rng.random(rows) < special.expit(m + mood - PURCHASE_BIAS))
    return Visits(user, item, hour, device, clicked, bought, m, mood)


def _intent(world: World, visits: Visits, rng: np.random.Generator) -> Ints:
    """What each visitor looks for next: a choice by age, city and hour."""
    age, city = world.user_age_U[visits.user], world.user_city_U[visits.user]
    score_NK = (world.age_category[age] + world.city_category[city] + world.hour_category[visits.hour])[:, :INTENTS]
    chosen: Ints = (2 * score_NK + rng.gumbel(size=score_NK.shape)).argmax(1)
    return chosen


def interest(world: World, user: Ints, item: Ints, hour: Ints, device: Ints) -> Floats:
    """``m``: how much a user wants an item in a context; a function of logged columns."""
    category, age, city = world.item_category_I[item], world.user_age_U[user], world.user_city_U[user]
    taste = (world.user_taste_UK[user] * world.item_taste_IK[item]).sum(1)
    dear = world.age_thrift[age] * (np.log(world.item_price_I[item]) - 3)
    fit = world.age_category[age, category] + world.city_category[city, category] + world.hour_category[hour, category]
    m: Floats = fit - dear + taste + world.user_bias_U[user] + world.item_quality_I[item] - 0.2 * (device == 0)
    return m


def _review_rate(want: Floats) -> Floats:
    return np.exp(np.clip(0.4 * want - 0.3, -5, 3))


def _traces(visits: Visits, rng: np.random.Generator) -> Traces:
    want, clicked, rows = visits.interest + visits.mood, visits.clicked, len(visits.mood)
    dwell_ms = np.floor(np.exp(9 + 0.5 * want + rng.normal(0, DWELL_NOISE, rows)))
    reviews = rng.poisson(_review_rate(want))
    in_cart = (rng.random(rows) < special.expit(want - 1)).astype(np.int64)
    return Traces(dwell_ms * clicked, reviews * clicked, in_cart * clicked)


def posterior(m: Floats, traces: Traces) -> Floats:
    """``P(purchase | m, post-click columns)`` of clicked rows, by Gauss-Hermite integration over the mood; else 0."""
    clicked = traces.dwell_ms > 0
    grid_G, weight_G = special.roots_hermitenorm(41)
    want = m[clicked, None] + grid_G * MOOD
    cart = traces.in_cart[clicked, None]
    log_likelihood = (
        -0.5 * ((np.log(traces.dwell_ms[clicked, None] + 0.5) - 9 - 0.5 * want) / DWELL_NOISE) ** 2
        + traces.reviews[clicked, None] * np.log(_review_rate(want))
        - _review_rate(want)
        + cart * special.log_expit(want - 1)
        + (1 - cart) * special.log_expit(1 - want)
    )
    density = weight_G * np.exp(log_likelihood - log_likelihood.max(1, keepdims=True))
    best = np.zeros(len(m))
    best[clicked] = (density * special.expit(want - PURCHASE_BIAS)).sum(1) / density.sum(1)
    return best


def _noise(_: World, visits: Visits, traces: Traces, rng: np.random.Generator) -> Traces:
    """The traces of other clicked rows: the same values, telling nothing of this row."""
    rows = np.flatnonzero(visits.clicked)
    other = np.arange(len(visits.clicked))
    other[rows] = rng.permutation(rows)
    return Traces(traces.dwell_ms[other], traces.reviews[other], traces.in_cart[other])


def _serving(world: World, visits: Visits, _: Traces, rng: np.random.Generator) -> Traces:
    """Nothing but what price, hour and age say already."""
    del rng
    dwell_ms = np.floor(np.exp(9 + 0.3 * np.log(world.item_price_I[visits.item])))
    age = world.user_age_U[visits.user]
    return Traces(dwell_ms * visits.clicked, visits.hour // 6 * visits.clicked, age % 2 * visits.clicked)


def _label(_: World, visits: Visits, traces: Traces, rng: np.random.Generator) -> Traces:
    """The purchase itself, dressed up as behaviour."""
    del traces
    rows, bought, clicked = len(visits.bought), visits.bought, visits.clicked
    dwell_ms = np.floor(np.exp(8 + 3 * bought + rng.normal(0, 0.5, rows)))
    return Traces(dwell_ms * clicked, (2 * bought + rng.integers(0, 2, rows)) * clicked, bought.astype(np.int64))


TWINS: dict[str, Callable[[World, Visits, Traces, np.random.Generator], Traces]] = {
    "noise": _noise,
    "serving": _serving,
    "label": _label,
}
