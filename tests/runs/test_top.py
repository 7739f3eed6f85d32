"""`score --top`: the best items of each user by the artefact alone, against sorted lists of plain inner products."""

import json
import shutil
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
import torch

from recdistill.export import artefact
from recdistill.export.codes import has_faiss, load_index
from recdistill.runs.rescore import Finished
from recdistill.training.rankings import vectors_of
from tests.conftest import Small
from tests.runs.conftest import Command, trained

Top = dict[int, list[tuple[int, int, float]]]  # of each user place, item and score, in the order of the file
SIDES = {"user": "user_id", "item": "item_id"}


@pytest.fixture(scope="module")
def products(tastes: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose student has vectors of real numbers."""
    changes = {
        "members.student.net": {"two_tower": {"item": ["item_id", "genre", "tempo"], "mlp": [8], "dim": 8}},
        "phases.1.terms": ["bpr(student.scores, own)"], "controls": {"none": "nothing to compare with"},
    }  # fmt: skip
    return trained(tastes, tmp_path_factory.mktemp("products"), changes)


def read(path: Path) -> Top:
    found: Top = {}
    frame = pl.read_parquet(path)
    assert frame.columns == ["user_id", "place", "item_id", "score"]
    for user, place, item, score in frame.iter_rows():
        found.setdefault(user, []).append((place, item, score))
    return found


def by_hand(run: Path, log: Path, items: pl.DataFrame, count: int, known: set[tuple[int, int]]) -> Top:
    """Every user's scores of all items by the artefact's vectors, sorted; equal ones by place among the items."""
    student, manifest = artefact.load(run / "student")
    users = pl.read_parquet(log).unique("user_id", keep="last", maintain_order=True)
    user_UD = artefact.vectors(student, manifest, users.to_arrow(), 7)[0]
    item_ND = artefact.vectors(student, manifest, items.to_arrow(), 5)[1]
    if manifest["lists"]["codes"]:
        user_UD = torch.sign(user_UD)
    found: Top = {}
    for user, score_N in zip(users["user_id"].to_list(), (user_UD @ item_ND.t()).tolist(), strict=True):
        left = [n for n, item in enumerate(items["item_id"].to_list()) if (user, item) not in known]
        best = sorted(left, key=lambda n: -score_N[n])[:count]
        found[user] = [(k, items["item_id"][n], score_N[n]) for k, n in enumerate(best, 1)]
    return found


def alike(one: Top, other: Top) -> bool:
    """Whether lists are the same, scores to float precision."""
    same = one.keys() == other.keys()
    for user, mine in one.items():
        theirs = other[user]
        same = same and [entry[:2] for entry in mine] == [entry[:2] for entry in theirs]
        same = same and [entry[2] for entry in mine] == pytest.approx([entry[2] for entry in theirs], abs=1e-5)
    return same


def items_of(run: Path) -> pl.DataFrame:
    return pl.read_parquet(run / "student" / "items.parquet")


@pytest.mark.parametrize("kind", ["ranked", "products"])
@pytest.mark.parametrize("count", [1, 5, 200])
def test_the_best_of_each_user_are_those_of_a_sorted_list(
    kind: str, count: int, splits: list[Path], command: Command, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    run, target = request.getfixturevalue(kind), tmp_path / "top.parquet"
    status, out, err = command("score", run, splits[2], target, "--top", count)
    assert status == 0 and "30 users" in out, err
    found = read(target)
    assert alike(found, by_hand(run, splits[2], items_of(run), count, set()))
    assert {len(mine) for mine in found.values()} == {min(count, len(items_of(run)))}
    assert len({score for mine in found.values() for _, _, score in mine}) > 2
    again = tmp_path / "again.parquet"
    assert command("score", run / "student", splits[2], again, "--top", count)[0] == 0
    assert read(again) == found


@pytest.mark.parametrize("kind", ["ranked", "products"])
def test_known_items_are_left_out_whatever_the_width_of_their_numbers(
    kind: str, splits: list[Path], command: Command, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    run, known = request.getfixturevalue(kind), tmp_path / "known.parquet"
    pairs = pl.read_parquet(splits[0]).select("user_id", "item_id")
    strangers = pl.DataFrame(
        {"user_id": [10**9, int(pairs["user_id"][0])], "item_id": [int(pairs["item_id"][0]), 10**9]}
    )
    pl.concat([pairs, pairs, strangers]).cast(pl.Int32).write_parquet(known)
    status, _, err = command("score", run, splits[2], tmp_path / "top.parquet", "--top", 40, "--known", known)
    assert status == 0, err
    found, taken = read(tmp_path / "top.parquet"), set(pairs.iter_rows())
    assert alike(found, by_hand(run, splits[2], items_of(run), 40, taken))
    assert all((user, item) not in taken for user, mine in found.items() for _, item, _ in mine)
    assert min(map(len, found.values())) < 40  # fewer are left than were asked for


@pytest.mark.parametrize("kind", ["ranked", "products"])
def test_new_items_are_placed_by_what_describes_them(
    kind: str, splits: list[Path], command: Command, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    run, file = request.getfixturevalue(kind), tmp_path / "new.parquet"
    new = items_of(run).head(12).with_columns(item_id=pl.int_range(1000, 1012, dtype=pl.Int64))
    pl.concat([new.with_columns(tempo=pl.lit(99.0)), new]).write_parquet(file)  # the last row of an item counts
    status, _, err = command("score", run, splits[2], tmp_path / "top.parquet", "--top", 6, "--items", file)
    assert status == 0, err
    found = read(tmp_path / "top.parquet")
    assert alike(found, by_hand(run, splits[2], new, 6, set()))
    assert {item for mine in found.values() for _, item, _ in mine} <= {*range(1000, 1012)}
    assert len({tuple(item for _, item, _ in mine) for mine in found.values()}) > 1  # not the same for everybody


def test_the_artefact_makes_the_vectors_of_training(ranked: Path, tastes: Small, group: None) -> None:
    finished = Finished.open(ranked)
    student, manifest = artefact.load(ranked / "student")
    items = items_of(ranked)
    served_NR = artefact.vectors(student, manifest, items.to_arrow(), 4)[1]
    with finished.encoded(str(tastes.log), finished.spec.model_copy(update={"split": None}), {}) as log:
        trained_IR = vectors_of(finished.engine(log, finished.seed).cast, "student", seed=0).item_ID
        values = log.fitted.columns["item_id"].rows.values.to_list()  # type: ignore[attr-defined]
    rows = [values.index(item) + 2 for item in items["item_id"].to_list()]
    assert torch.equal(served_NR, trained_IR[rows]) and len(rows) > 40
    assert items["item_id"].to_list() == sorted(items["item_id"].to_list())


def test_the_index_holds_the_codes_of_the_items(ranked: Path, products: Path) -> None:
    index, about = load_index(ranked / "student" / "codes")
    student, manifest = artefact.load(ranked / "student")
    user_UR, item_NR = artefact.vectors(student, manifest, pq.read_table(ranked / "student" / "golden.parquet"), 9)
    item_NR = artefact.vectors(student, manifest, items_of(ranked).to_arrow(), 9)[1]
    assert about["items"] == len(item_NR) and about["bits"] == 16
    assert ("codes.faiss" in about["files"]) == has_faiss()
    assert torch.equal(index.scores(index.pack(user_UR)).float(), torch.sign(user_UR) @ item_NR.t())
    report = json.loads((ranked / "report.json").read_text())
    assert report["artefact"]["codes"]["items"] == len(item_NR) and {"items", "codes"} <= {
        *report["artefact"]["verified"]
    }
    assert not (products / "student" / "codes").exists()
    assert json.loads((products / "report.json").read_text())["artefact"]["codes"] is None


def test_verify_finds_codes_and_items_that_are_not_the_students(ranked: Path, command: Command, tmp_path: Path) -> None:
    assert command("verify", ranked / "student")[0] == 0
    for name in ("items", "codes"):
        shutil.copytree(ranked / "student", tmp_path / name)
    changed = items_of(ranked).with_columns(tempo=-pl.col("tempo"))
    changed.write_parquet(tmp_path / "items" / "items.parquet")
    status, out, _ = command("verify", tmp_path / "items")
    assert status == 2 and "['items.parquet']" in out
    about = tmp_path / "codes" / "codes" / "codes.json"
    with about.open() as file:
        said = json.load(file)
    about.write_text(json.dumps({**said, "files": {**said["files"], "codes.pt": "0" * 64}}))
    status, out, _ = command("verify", tmp_path / "codes")
    assert status == 2 and "['codes.pt']" in out


def test_what_lists_cannot_be_made_of_is_said(
    ranked: Path, splits: list[Path], command: Command, tmp_path: Path
) -> None:
    target, rows = tmp_path / "top.parquet", pl.read_parquet(splits[2])
    assert "say how long" in command("score", ranked, splits[2], target, "--known", splits[0])[2]
    rows.drop("user_id").write_parquet(tmp_path / "nobody.parquet")
    status, _, err = command("score", ranked, tmp_path / "nobody.parquet", target, "--top", 3)
    assert status == 2 and "lacks 'user_id', by which lists are made" in err
    for column, change in (("item_id", rows.drop("item_id")), ("user_id", rows.cast({"user_id": pl.String}))):
        change.write_parquet(tmp_path / "known.parquet")
        status, _, err = command("score", ranked, splits[2], target, "--top", 3, "--known", tmp_path / "known.parquet")
        assert status == 2 and f"'{column}'" in err and "Traceback" not in err
    assert not target.exists()
