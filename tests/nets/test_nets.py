"""Nets: their equations, their shapes, and that each can be scripted."""

import pytest
import torch
from torch import Tensor

from recdistill.errors import TrainingError
from recdistill.export.artefact import scripted
from recdistill.nets.catalog import NETS, UNTRAINED, Head, Net
from recdistill.nets.inputs import Field, Inputs
from recdistill.nets.towers import Stack, TwoTower

INPUTS = Inputs(
    (
        *(Field(name, 4 * i, 4, embedded=True) for i, name in enumerate(("user", "item", "city"))),
        Field("price", 12, 1, embedded=False),
    )
)
OPTIONS = {
    "mlp": {"layers": [6, 5]},
    "deepfm": {"mlp": [6, 5]},
    "dcn_v2": {"mlp": [6, 5], "cross_layers": 2},
    "two_tower": {"mlp": [6], "item": ["item"], "dim": 3},
    "average": {},
}
LOGITS = Inputs(tuple(Field(f"input {i}", i, 1, embedded=False) for i in range(13)))  # what an average reads
ONE_LABEL = ("two_tower", "average")


def inputs_of(name: str) -> Inputs:
    return LOGITS if name == "average" else INPUTS


def rows(count: int = 5) -> Tensor:
    return torch.randn(count, INPUTS.width, generator=torch.Generator().manual_seed(0))


def test_every_net_is_tried_here() -> None:
    assert OPTIONS.keys() == NETS.keys()


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_net_answers_one_logit_per_row_and_label(name: str, count: int) -> None:
    labels = 1 if name in ONE_LABEL else 3
    out = Net(name, OPTIONS[name]).build(inputs_of(name), labels).eval()(rows(count))
    assert out.logits_BK.shape == (count, labels)
    assert all(h.shape[0] == count and h.dim() == 2 for h in out.hidden)
    assert out.embed_BE.shape == (count, INPUTS.width)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
def test_a_scripted_net_equals_the_eager_one(name: str, norm: str) -> None:
    options = {} if name in UNTRAINED else {**OPTIONS[name], "norm": norm, "dropout": 0.2}
    net = Net(name, options).build(inputs_of(name), 1)
    head = Head([], Stack(INPUTS.width, []), net, 0.1).eval()
    assert torch.equal(scripted(head)(rows(), [], []).logits_BK, head(rows(), [], []).logits_BK)


def test_an_average_is_one_of_probabilities_label_by_label() -> None:
    x = torch.tensor([[2.0, -1.0, 0.0, 3.0]])
    expected = torch.tensor(
        [[(x[0, 0].sigmoid() + x[0, 2].sigmoid()) / 2, (x[0, 1].sigmoid() + x[0, 3].sigmoid()) / 2]]
    )
    fields = Inputs(tuple(Field(f"input {i}", 2 * i, 2, embedded=False) for i in range(2)))
    assert torch.allclose(Net("average", {}).build(fields, 2)(x).logits_BK.sigmoid(), expected)
    assert not list(Net("average", {}).build(fields, 2).parameters())
    with pytest.raises(TrainingError, match="reads logits of other members"):
        Net("average", {}).build(INPUTS, 1)


def test_deepfm_is_first_order_plus_pairs_plus_deep() -> None:
    net = Net("deepfm", OPTIONS["deepfm"]).build(INPUTS, 1)
    x = rows()
    vectors = [x[:, f.start : f.start + f.width] for f in INPUTS.embedded]
    pairs = sum((vectors[i] * vectors[j]).sum(1) for i in range(3) for j in range(i + 1, 3))
    deep = net.out(net.stack(x)[-1])
    assert torch.allclose(net(x).logits_BK, net.first_order(x) + deep + pairs.unsqueeze(1), atol=1e-6)


@pytest.mark.parametrize("rank", [None, 2])
def test_dcn_v2_crosses_by_its_equation(rank: int | None) -> None:
    net = Net("dcn_v2", {**OPTIONS["dcn_v2"], "rank": rank}).build(INPUTS, 1)
    x = rows()
    crossed = x
    for layer in net.cross:
        weight = layer.widen.weight if rank is None else layer.widen.weight @ layer.narrow.weight
        crossed = x * (crossed @ weight.T + layer.widen.bias) + crossed
    expected = net.out(torch.cat([crossed, net.stack(x)[-1]], 1))
    assert torch.allclose(net(x).logits_BK, expected, atol=1e-5)


def test_item_vectors_can_be_computed_before_any_user_is_known() -> None:
    net = Net("two_tower", OPTIONS["two_tower"]).build(INPUTS, 1).eval()
    assert isinstance(net, TwoTower)
    x = rows()
    items = x.clone()
    items[:, [*range(4), *range(8, 13)]] = float("nan")  # everything that is not the item
    users = x.clone()
    users[:, 4:8] = float("nan")
    expected = (net.user_vector(users) * net.item_vector(items)).sum(1, keepdim=True) + net.bias
    assert torch.equal(net(x).logits_BK, expected)


@pytest.mark.parametrize(
    ("name", "options", "labels", "message"),
    [
        ("two_tower", {"mlp": [4], "item": ["nothing"]}, 1, "must name some but not all"),
        ("two_tower", {"mlp": [4], "item": ["user", "item", "city", "price"]}, 1, "must name some but not all"),
        ("two_tower", {"mlp": [4], "item": ["item"]}, 2, "one inner product"),
        ("mlp", {"layers": [4], "norm": "bach"}, 1, "norm is 'bach'"),
    ],
)
def test_what_a_net_cannot_do_is_said(name: str, options: dict, labels: int, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        Net(name, options).build(INPUTS, labels)


def test_missing_and_unknown_options_are_named() -> None:
    assert Net("mlp", {"layer": [3]}).problems() == [
        "mlp needs 'layers'",
        "mlp has no option 'layer'; known: layers, norm, dropout",
    ]
