"""Alignment: what a few rows tell a linear student of a direction, against counting and drawn rows."""

import numpy as np
import pytest
from numpy.typing import NDArray

from recdistill.evaluation.alignment import Alignment, angle, disagreement, projection


def drawn(seed: int, rows: int, width: int, stretched: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Normal rows that are stretched along their first coordinate, and that direction."""
    x_ND = np.random.default_rng(seed).normal(size=(rows, width))
    x_ND[:, 0] *= stretched
    return x_ND, np.eye(width)[0]


def test_the_projection_is_the_shortest_vector_that_answers_all_rows() -> None:
    rng = np.random.default_rng(0)
    x_ND, weight_D = rng.normal(size=(5, 12)), rng.normal(size=12)
    found_D = projection(x_ND, x_ND @ weight_D)
    assert np.allclose(x_ND @ found_D, x_ND @ weight_D)
    assert np.allclose(found_D, x_ND.T @ np.linalg.solve(x_ND @ x_ND.T, x_ND @ weight_D))
    assert np.linalg.norm(found_D) < np.linalg.norm(weight_D)
    twice_ND = np.concatenate([x_ND, x_ND])  # repeated rows tell nothing new
    assert np.allclose(projection(twice_ND, twice_ND @ weight_D), found_D)


def test_enough_rows_tell_the_direction_itself() -> None:
    rng = np.random.default_rng(1)
    x_ND, weight_D = rng.normal(size=(30, 12)), rng.normal(size=12)
    assert np.allclose(projection(x_ND, x_ND @ weight_D), weight_D)


def test_more_rows_never_enlarge_the_angle() -> None:
    rng = np.random.default_rng(2)
    x_ND, weight_D = rng.normal(size=(20, 20)), rng.normal(size=20)
    found = [angle(projection(x_ND[:n], x_ND[:n] @ weight_D), weight_D) for n in range(1, 21)]
    assert (np.diff(found) < 1e-12).all() and found[-1] < 1e-6 < found[-2]


def test_an_angle_says_how_round_rows_disagree() -> None:
    one_D, other_D = np.array([1.0, 0, 0]), np.array([1.0, 1.0, 0])
    assert angle(one_D, other_D) == pytest.approx(np.pi / 4)
    x_ND = np.random.default_rng(3).normal(size=(40000, 3))
    assert disagreement(x_ND @ one_D, x_ND @ other_D) == pytest.approx(0.25, abs=0.01)
    assert angle(one_D, 0 * one_D) == np.pi / 2


def test_the_tail_and_the_bound_count_rows() -> None:
    x_ND, weight_D = drawn(4, 200, 4, 3.0)
    found = Alignment.of(x_ND, weight_D)
    cosine_N = np.abs(x_ND @ weight_D) / np.linalg.norm(x_ND, axis=1)
    beside_N = np.degrees(np.arccos(cosine_N))

    def tail(least: float) -> float:
        return sum(1 for each in beside_N if each >= least) / len(beside_N)

    for least in (0, 20, 45, 89.9):
        assert found.tail(np.radians(least)) == pytest.approx(tail(least))
    for rows in (1, 3, 30):
        counted = min(tail(beta) + tail(90 - beta) ** rows for beta in np.linspace(0, 90, 901))
        assert found.bound(rows) == pytest.approx(min(1, counted), abs=0.01)


@pytest.mark.parametrize(("stretched", "width"), [(1.0, 3), (10.0, 10), (100.0, 30)])
def test_disagreement_stays_below_the_bound_in_the_mean(stretched: float, width: int) -> None:
    fresh_ND, weight_D = drawn(5, 4000, width, stretched)
    bounds = []
    for rows in (1, 3, 9):
        failed = []
        for draw in range(200):
            x_ND, _ = drawn(100 + draw, rows, width, stretched)
            failed.append(disagreement(fresh_ND @ projection(x_ND, x_ND @ weight_D), fresh_ND @ weight_D))
        bounds.append(Alignment.of(fresh_ND, weight_D).bound(rows))
        assert np.mean(failed) <= bounds[-1]
    assert bounds == sorted(bounds, reverse=True) and (bounds[-1] < 0.2 or stretched < 100)
