"""What is known of users and items: their last rows in training, joined to the rows of any pair; and the disk."""

from pathlib import Path

import polars as pl
import pytest
import torch

from recdistill.data.batch import View
from recdistill.data.catalogue import Catalogue
from recdistill.data.encode import encode
from recdistill.data.encoded import EncodedLog
from recdistill.data.nodes import Nodes
from recdistill.data.reader import Reader, Selection, take_view
from recdistill.data.transforms.rows import FIRST
from recdistill.errors import LogError
from recdistill.spec.graph import GraphSpec
from tests.conftest import Small
from tests.data.logs import raw, spec
from tests.training.rich import rich_log

COLUMNS = ["user", "city", "tags", "words", "price", "price_band"]


def same_row(one: View, first: int, other: View, second: int) -> bool:
    """Whether two rows hold the same values in all columns of the first view."""
    a, b = take_view(one, torch.tensor([first])), take_view(other, torch.tensor([second]))
    same = torch.equal(a.ids_FB, b.ids(a.id_names)) and torch.equal(a.floats_BN, b.floats(a.float_names))
    for name, bag in a.bags.items():
        for part, value in vars(bag).items():
            same = same and (value is None or torch.equal(value, getattr(b.bag(name), part)))
    return same


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> EncodedLog:
    """A log with nulls, in which of user 999 nothing is known but his id."""
    folder = tmp_path_factory.mktemp("catalogue")
    rows = raw(240)
    lonely = pl.DataFrame({"user": [999] * 4, "key": [10**6 + k for k in range(4)], "time_ms": [5, 6, 7, 8]})
    rows = pl.concat([lonely, rows], how="diagonal").with_columns(pl.col("click").fill_null(0))
    rows = rows.with_columns(part=(pl.col("time_ms") >= 1200).cast(pl.Int8) + (pl.col("time_ms") >= 2000).cast(pl.Int8))
    rows.write_parquet(folder / "log.parquet")
    split = {"column": "part", "train": [0, 0], "valid": [1, 1], "test": [2, 2]}
    return encode(spec(split=split), str(folder / "log.parquet"), folder / "encoded", fit_on=("train", "valid"))


@pytest.mark.parametrize("splits", [("train",), ("train", "valid")])
def test_everybody_is_as_in_his_last_row_and_the_others_have_nothing_but_their_id(log, splits) -> None:
    found = Catalogue.of(log, {"user": COLUMNS}, splits).sides["user"]
    batches = [batch.serving for batch in Reader(log, splits, Selection(tuple(COLUMNS))).in_order(50)]
    last = {user: (view, row) for view in batches for row, user in enumerate(view.ids(("user",))[0].tolist())}
    values = log.fitted.columns["user"].rows.values.to_list()  # type: ignore[attr-defined]
    lonely, row = last[values.index(999) + FIRST]
    nothing = take_view(lonely, torch.tensor([row]))
    assert found.ids(("user",))[0].tolist() == [*range(log.fitted.tables["user"])]
    met = [user for user in last if user >= FIRST]
    for user in range(log.fitted.tables["user"]):
        if user in met:
            assert same_row(found, user, *last[user])
        else:
            nothing.ids_FB[nothing.id_names.index("user")] = user
            assert same_row(found, user, nothing, 0)  # as the encoder writes what is missing
    assert 20 < len(met) <= log.fitted.tables["user"] - FIRST


def test_joined_rows_have_both_sides_and_the_columns_of_neither_are_missing(log) -> None:
    sides = {"user": ["user", "words"], "item": ["city", "tags", "price"]}
    catalogue = Catalogue.of(log, sides, ("train",))
    users, cities = torch.tensor([3, 2, 3, 5]), torch.tensor([2, 4, 3, 0])
    both = catalogue.join(COLUMNS, {"user": users, "item": cities})
    assert {*both.names} == {*COLUMNS}
    for place, (user, city) in enumerate(zip(users.tolist(), cities.tolist(), strict=True)):
        assert same_row(catalogue.sides["user"], user, both, place)
        assert same_row(catalogue.sides["item"], city, both, place)
    assert not bool(both.ids(("price_band",)).any())  # described by neither
    half = catalogue.join(COLUMNS, {"item": cities})
    assert not bool(half.ids(("user",)).any()) and torch.equal(half.ids(("city",))[0], cities)


def test_users_and_items_survive_the_disk_with_all_their_columns(tmp_path: Path) -> None:
    rich = rich_log(tmp_path)
    graph = GraphSpec(user="city", item="item", user_columns=["price", "clicks"], item_columns=["tags"])
    nodes = Nodes.of(rich.encoded, graph, ["city", "item", "price", "clicks", "tags"], ("train",))
    nodes.save(tmp_path / "nodes")
    again = Nodes.load(tmp_path / "nodes", rich.encoded)
    assert torch.equal(again.graph.user_E, nodes.graph.user_E)
    for side, view in nodes.catalogue.sides.items():
        assert again.catalogue.sides[side].names == view.names
        assert all(same_row(view, row, again.catalogue.sides[side], row) for row in range(nodes.catalogue.rows(side)))
    assert {*nodes.catalogue.sides["user"].bags} == {"clicks"} and {*nodes.catalogue.sides["item"].bags} == {"tags"}
    (tmp_path / "nodes" / "catalogue.safetensors").write_bytes(b"broken")
    with pytest.raises(LogError, match="no readable users and items"):
        Nodes.load(tmp_path / "nodes", rich.encoded)


def test_only_columns_that_are_read_are_kept(tastes: Small) -> None:
    graph = GraphSpec(user="user_id", item="item_id", user_columns="region", item_columns=["genre", "tempo"])
    nodes = Nodes.of(tastes.encoded, graph, ["item_id", "tempo"], ("train",))
    assert {side: view.names for side, view in nodes.catalogue.sides.items()} == {
        "user": ("user_id",), "item": ("item_id", "tempo"),
    }  # fmt: skip


def test_a_permuted_graph_is_another_one_of_the_same_users(tastes: Small) -> None:
    sides = {"user": "user_id", "item": "item_id"}
    one, other = (
        Nodes.of(tastes.encoded, GraphSpec.model_validate({**sides, **more}), [], ("train",)).graph
        for more in ({}, {"permuted": 1})
    )
    assert torch.equal(one.user_E.unique(), other.user_E.unique()) and not torch.equal(one.item_E, other.item_E)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        ({"user": "user_idd", "item": "item_id"}, "did you mean 'user_id'"),
        ({"user": "user_id", "item": "tempo"}, "is of type numeric"),
        ({"user": "user_id", "item": "item_id", "user_columns": "genre", "item_columns": "genre"}, "users and items"),
    ],
)  # fmt: skip
def test_a_graph_that_does_not_suit_its_spec_is_refused(tastes: Small, graph, message) -> None:
    (found,) = GraphSpec.model_validate(graph).problems_with(tastes.encoded.spec)
    assert message in found
