"""Keys of a member that would be ignored are refused, whatever its origin; those that count are not."""

import pytest

from recdistill.spec.idle import IDLE
from recdistill.spec.members import ORIGINS, MemberSpec
from tests.spec.jobs import job

FOLLOWERS = {
    "ema": "student",
    "best": {"of": "student", "average": 2},
    "snapshot": {"of": "student", "every": 3},
    "previous": {"of": "student"},
    "remote": {"of": "student", "exchange": "there", "name": "me", "every": 3},
    "same": "student",
}
MEMBERS = FOLLOWERS | {
    "scores": "scores.parquet",
    "edit": {"of": "student", "by": "drop(0)"},
    "frozen": {"run": "runs/monday", "member": "teacher"},
}
GIVEN = {
    "view": ["item"],
    "outputs": 3,
    "labels": ["buy"],
    "inputs": ["student.logit"],
    "distort": {"mask": 0.1},
    "folds": True,
    "fold": [0, 2],
    "dim": 8,
    "dims": {"user": 8},
    "pool": {"tags": "mean"},
    "dropout": 0.1,
    "trunk": [4],
    "share": {"tables": "student"},
    "init": 0.5,
    "dense": {"sgd": {"lr": 0.1}},
    "tables": {"sgd": {"lr": 0.1}},
    "warm_start": {"run": "runs/monday", "member": "teacher"},
    "copies": 2,
    "serve": False,
    "compare": False,
}
CASES = [(origin, key) for origin in MEMBERS for key in GIVEN]


def member(origin: str, **keys: object) -> dict[str, object]:
    net = {"net": "lr"} if origin == "frozen" else {}
    return {origin: MEMBERS[origin], **net, **keys}


def idle(**members: dict[str, object]) -> list[str]:
    found = job(**{f"members__{name}": described for name, described in members.items()}).problems()
    return [problem for problem in found if "expected nothing" in problem]


def test_every_key_and_every_origin_is_decided() -> None:
    assert IDLE.keys() == MEMBERS.keys() == {*ORIGINS}
    assert GIVEN.keys() == MemberSpec.model_fields.keys() - {*ORIGINS, "net"}


@pytest.mark.parametrize(("origin", "key"), CASES)
def test_a_key_that_would_be_ignored_is_refused_and_any_other_is_not(origin: str, key: str) -> None:
    found = idle(second=member(origin, **{key: GIVEN[key]}))
    assert bool(found) == (key in IDLE[origin])
    assert all(problem.startswith(f"members.second.{key}: expected nothing on a member with") for problem in found)


def test_the_message_says_place_expectation_finding_and_remedy() -> None:
    assert idle(second={"same": "student", "dim": 8, "dense": {"sgd": {"lr": 0.1}}}) == [
        "members.second.dim: expected nothing on a member with `same`, which has what 'student' has, found 8; remove "
        "it, or set it on 'student'",
        "members.second.dense: expected nothing on a member with `same`, which has what 'student' has, found "
        "{'sgd': {'lr': 0.1}}; remove it, or set it on 'student'",
    ]
    assert idle(second={"scores": "scores.parquet", "trunk": [4]}) == [
        "members.second.trunk: expected nothing on a member with `scores`, of which nothing but scores is read, found "
        "[4]; remove it"
    ]


def test_a_second_name_may_read_a_signal_in_place_of_columns_but_serves_as_its_original_does() -> None:
    signal = {"embed": "noise(8)"}
    assert idle(second={"same": "student", "view": signal}) == []
    (found,) = idle(second={"same": "student", "view": signal, "serve": {"view": ["item"]}})
    assert found.startswith("members.second.serve: expected nothing")
