"""Batches: two views that cannot be mixed up, and parts that must hold the same rows."""

import pytest
import torch

from recdistill.data.batch import Batch, Jagged, View, concat
from recdistill.data.reader import take, take_jagged
from recdistill.errors import ShapeError, VisibilityError


def view(audience, ids=("user", "item"), floats=("price",), bags=("tags",), rows=3, start=0):
    """A view whose values tell their row and column."""
    row_B = torch.arange(start, start + rows)
    lengths_B = row_B % 3 + 1
    return View(
        audience,
        torch.stack([row_B + 100 * i for i in range(len(ids))]) if ids else torch.zeros((0, rows), dtype=torch.int64),
        tuple(ids),
        torch.stack([row_B / 10 + i for i in range(len(floats))], 1) if floats else torch.zeros((rows, 0)),
        tuple(floats),
        {name: Jagged(torch.repeat_interleave(row_B, lengths_B), lengths_B) for name in bags},
    )


def batch(rows=3, start=0, privileged=True):
    after = view("privileged", ("bought",), ("dwell",), ("seen",), rows, start) if privileged else None
    return Batch(
        torch.arange(start, start + rows),
        view("serving", rows=rows, start=start),
        {"buy": torch.ones(rows)},
        torch.ones(rows),
        after,
    )


def test_a_view_names_its_columns_and_hands_them_out_in_any_order():
    one = view("serving")
    assert one.names == ("user", "item", "price", "tags")
    assert one.ids(("item", "user")).tolist() == [[100, 101, 102], [0, 1, 2]]
    assert one.ids(("item",)).tolist() == [[100, 101, 102]]
    assert one.floats(("price",)).tolist() == [[pytest.approx(x)] for x in (0.0, 0.1, 0.2)]
    assert one.bag("tags").lengths_B.tolist() == [1, 2, 3]


def test_all_columns_in_their_order_are_not_copied():
    one = view("serving")
    assert one.ids(("user", "item")) is one.ids_FB
    assert one.floats(("price",)) is one.floats_BN


@pytest.mark.parametrize(
    "ask",
    [
        lambda v: v.ids(("user", "bought")),
        lambda v: v.ids(("price",)),
        lambda v: v.floats(("dwell",)),
        lambda v: v.floats(("user",)),
        lambda v: v.bag("seen"),
        lambda v: v.bag("user"),
    ],
)
def test_a_column_that_a_view_does_not_hold_is_refused_with_what_it_holds(ask):
    with pytest.raises(
        VisibilityError, match=r"was asked of the serving view, which holds \['user', 'item', 'price', 'tags'\]"
    ):
        ask(view("serving"))


def test_swapped_views_are_refused():
    serving, privileged = view("serving"), view("privileged", ("bought",), ("dwell",), ())
    for first, second in ((privileged, serving), (privileged, None), (serving, serving)):
        with pytest.raises(VisibilityError, match="the serving and the privileged view are swapped"):
            Batch(torch.arange(3), first, {}, torch.ones(3), second)


@pytest.mark.parametrize(
    "shared", [{"ids": ("item",)}, {"floats": ("price",)}, {"bags": ("tags",)}, {"floats": ("user",)}]
)
def test_a_column_in_both_views_is_refused(shared):
    after = view("privileged", **{"ids": (), "floats": (), "bags": (), **shared})
    name = next(iter(shared.values()))[0]
    with pytest.raises(VisibilityError, match=rf"\['{name}'\] stand in the serving and in the privileged view"):
        Batch(torch.arange(3), view("serving"), {}, torch.ones(3), after)


def parts(**changes):
    """The parts of a right batch of three rows, with some replaced."""
    right = {
        "row_id_B": torch.arange(3),
        "serving": view("serving"),
        "labels": {"buy": torch.ones(3)},
        "weight_B": torch.ones(3),
        "privileged": view("privileged", ("bought",), ("dwell",), ("seen",)),
    }
    return {**right, **changes}


@pytest.mark.parametrize(
    "changes",
    [
        {"row_id_B": torch.arange(4)},
        {"weight_B": torch.ones(2)},
        {"labels": {"buy": torch.ones(3), "click": torch.ones(4)}},
        {"serving": view("serving", rows=4)},
        {"serving": view("serving", ids=(), floats=("price",), rows=4)},
        {"serving": View("serving", torch.zeros((1, 3)), ("u",), torch.zeros((2, 1)), ("p",))},
        {"privileged": view("privileged", ("bought",), ("dwell",), (), rows=4)},
        {
            "serving": View(
                "serving", torch.zeros((1, 3)), ("u",), torch.zeros((3, 0)), (), view("serving", rows=2).bags
            )
        },
    ],
    ids=["row ids", "weights", "labels", "serving", "only floats", "floats", "privileged", "bags"],
)
def test_parts_of_different_rows_are_refused(changes):
    assert len(Batch(**parts())) == 3
    with pytest.raises(ShapeError, match="all parts of a batch hold the same rows"):
        Batch(**parts(**changes))


def same(one, two):
    """Whether two batches are equal in every part."""
    pairs = [(one.row_id_B, two.row_id_B), (one.weight_B, two.weight_B)]
    assert one.labels.keys() == two.labels.keys()
    pairs += [(one.labels[name], two.labels[name]) for name in one.labels]
    assert (one.privileged is None) == (two.privileged is None)
    for first, second in ((one.serving, two.serving), (one.privileged, two.privileged)):
        if first is not None:
            assert first.names == second.names
            pairs += [(first.ids_FB, second.ids_FB), (first.floats_BN, second.floats_BN)]
            for name in first.bags:
                pairs.append((first.bag(name).values_L, second.bag(name).values_L))
                pairs.append((first.bag(name).lengths_B, second.bag(name).lengths_B))
    return all(torch.equal(a, b) and a.dtype == b.dtype for a, b in pairs)


@pytest.mark.parametrize("privileged", [True, False])
def test_batches_put_together_are_their_rows_one_after_the_other(privileged):
    whole = batch(9, privileged=privileged)
    cut = [batch(rows, start, privileged) for rows, start in ((2, 0), (3, 2), (0, 5), (4, 5))]
    assert same(concat(cut), whole)
    assert concat([whole]) is whole


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 0, 2], [], [1, 1, 3], [3, 2, 1, 0]])
def test_rows_taken_from_a_batch_keep_their_values_together(order):
    whole = batch(5)
    taken = take(whole, torch.tensor(order, dtype=torch.int64))
    assert taken.row_id_B.tolist() == order
    single = [take(whole, torch.tensor([row])) for row in order]
    assert all(same(batch(1, row), part) for row, part in zip(order, single, strict=True))
    if order:
        assert same(concat(single), taken)


def test_lists_may_be_empty_while_they_are_taken():
    bag = Jagged(torch.tensor([1, 2, 3]), torch.tensor([0, 2, 0, 1]))
    taken = take_jagged(bag, torch.tensor([3, 0, 1, 2]))
    assert (taken.values_L.tolist(), taken.lengths_B.tolist()) == ([3, 1, 2], [1, 0, 2, 0])
