"""Nets: their equations, their shapes, and that each can be scripted."""

import numpy as np
import pytest
import torch
from sklearn.isotonic import IsotonicRegression
from torch import Tensor

from recdistill.errors import TrainingError
from recdistill.evaluation import log_loss
from recdistill.export.artefact import scripted
from recdistill.nets.catalog import NETS, Head, Net
from recdistill.nets.inputs import Field, Inputs
from recdistill.nets.mixtures import simplex, staircase
from recdistill.nets.towers import Stack, TwoTower

INPUTS = Inputs(
    (
        *(Field(name, 4 * i, 4, embedded=True) for i, name in enumerate(("user", "item", "city"))),
        Field("price", 12, 1, embedded=False),
    )
)
LOGITS = Inputs(tuple(Field(f"input {i}", i, 1, embedded=False) for i in range(3)))
VECTORS = Inputs((Field("input 0", 0, 4, embedded=False), Field("input 1", 4, 6, embedded=False)))
GRAPH = Inputs(
    (
        *(Field(name, 4 * i, 4, embedded=True) for i, name in enumerate(("user", "item"))),
        *(Field(f"{name} in the graph", 8 + 4 * i, 4, embedded=False) for i, name in enumerate(("user", "item"))),
    )
)
SIDES = {"user": "user", "item": "item"}
READS = {"average": LOGITS, "blend": LOGITS, "light_gcn": GRAPH, "cross_gcn": GRAPH, "mixture_of_experts": VECTORS}
OPTIONS = {
    "mlp": {"layers": [6, 5]},
    "deepfm": {"mlp": [6, 5]},
    "dcn_v2": {"mlp": [6, 5], "cross_layers": 2},
    "two_tower": {"mlp": [6], "item": ["item"], "dim": 3},
    "binary_two_tower": {"mlp": [6], "item": ["item"], "bits": 8},
    "mf": SIDES,
    "binary_mf": SIDES,
    "light_gcn": SIDES,
    "cross_gcn": SIDES,
    "grouped": {"mlp": [6, 5], "groups": [1], "width": 4},
    "exclusive": {"mlp": [6, 5]},
    "average": {},
    "blend": {},
    "mixture_of_experts": {},
}
LABELS = {"mlp": 3, "deepfm": 3, "dcn_v2": 3, "exclusive": 3}
NORMED = ("mlp", "deepfm", "dcn_v2", "two_tower")


@pytest.fixture(autouse=True)
def parameters_that_are_drawn_alike() -> None:
    torch.manual_seed(0)


def rows(count: int = 5, inputs: Inputs = INPUTS) -> Tensor:
    return torch.randn(count, inputs.width, generator=torch.Generator().manual_seed(0))


def test_every_net_is_tried_here() -> None:
    assert OPTIONS.keys() == NETS.keys()


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_net_answers_one_logit_per_row_and_label(name: str, count: int) -> None:
    labels, inputs = LABELS.get(name, 1), READS.get(name, INPUTS)
    out = Net(name, OPTIONS[name]).build(inputs, labels).eval()(rows(count, inputs))
    assert out.logits_BK.shape == (count, labels)
    assert all(h.shape[0] == count and h.dim() == 2 for h in out.hidden)
    assert out.embed_BE.shape == (count, inputs.width)


@pytest.mark.parametrize("name", [name for name in NETS if not Net(name).whole])  # others cannot serve
@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
def test_a_scripted_net_equals_the_eager_one(name: str, norm: str) -> None:
    inputs = READS.get(name, INPUTS)
    options = {"norm": norm, "dropout": 0.2} if name in NORMED else {}
    net = Net(name, {**OPTIONS[name], **options}).build(inputs, 3 if name == "exclusive" else 1)
    head = Head([], Stack(inputs.width, []), net, 0.1).eval()
    x = rows(5, inputs)
    assert torch.equal(scripted(head)(x, [], []).logits_BK, head(x, [], []).logits_BK)


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


def test_probabilities_of_exclusive_labels_add_up_to_1() -> None:
    net = Net("exclusive", OPTIONS["exclusive"]).build(INPUTS, 4)
    x = rows()
    share = torch.softmax(net.out(net.stack(x)[-1]), 1)
    assert torch.allclose(torch.sigmoid(net(x).logits_BK), share, atol=1e-6)
    before = net(x).logits_BK.detach()
    with torch.no_grad():
        net.out.bias += 3.0
    assert torch.allclose(net(x).logits_BK, before, atol=1e-5)
    with torch.no_grad():
        net.out.bias += torch.tensor([500.0, 0.0, 0.0, 0.0])
    assert bool(torch.isfinite(net(x).logits_BK).all())


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
        ("grouped", {"mlp": [4], "groups": [2, 2], "width": 3}, 5, "have 4 labels, but the member has 5"),
        ("exclusive", {"mlp": [4]}, 2, "at least 3 labels that exclude each other, found 2"),
        ("average", {"of": "odds"}, 1, "of is 'odds'"),
        ("average", {}, 2, "reads the logits of other members, 2 of each"),
        *((name, SIDES, 2, f"{name}: has one inner product") for name in ("mf", "binary_mf", "light_gcn", "cross_gcn")),
        ("mf", {"user": "user", "item": "price"}, 1, "needs the embedded columns 'user' and 'price' of one width"),
        ("binary_two_tower", {"mlp": [4], "item": ["item"], "kind": "signs"}, 1, "kind is 'signs'; expected one of"),
        ("blend", {}, 2, "answers one label, but 2 are asked for"),
        ("blend", {"step": 0}, 1, r"a step in \(0, 1\]"),
    ],
)
def test_what_a_net_cannot_do_is_said(name: str, options: dict, labels: int, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        Net(name, options).build(READS.get(name, INPUTS), labels)


@pytest.mark.parametrize("name", [name for name in NETS if Net(name).ranks])
def test_a_net_that_ranks_ends_in_the_two_vectors_that_it_multiplies(name: str) -> None:
    inputs = READS.get(name, INPUTS)
    net = Net(name, OPTIONS[name]).build(inputs, 1).eval()
    x = rows(5, inputs)
    out = net(x)
    products = (out.hidden[-2] * out.hidden[-1]).sum(1)
    assert torch.allclose(out.logits_BK[:, 0] - products, (out.logits_BK[:, 0] - products)[:1].expand(5), atol=1e-6)
    assert products.std() > 1e-3  # what does not vary would fit any constant
    if inputs is GRAPH:  # the propagated vectors score, those of the tables are there to be penalised
        assert torch.equal(torch.cat(out.hidden, 1), x)


@pytest.mark.parametrize("name", ["binary_two_tower", "binary_mf"])
def test_stochastic_codes_are_drawn_in_training_alone(name: str) -> None:
    net = Net(name, OPTIONS[name]).build(INPUTS, 1)
    x = rows(50)
    first, second = (torch.cat(net.train()(x).hidden[-2:], 1) for _ in range(2))
    assert not torch.equal(first, second)
    served = net.eval()(x)
    assert torch.equal(served.hidden[-1], net(x).hidden[-1])
    assert torch.equal(served.hidden[-1], torch.where(served.hidden[1] >= 0, 1.0, -1.0))
    assert len(first[:, :4].abs().unique()) == 1  # a scale and no more


@pytest.mark.parametrize("name", ["average", "blend"])
def test_what_puts_answers_together_reads_no_columns(name: str) -> None:
    with pytest.raises(TrainingError, match="and nothing else"):
        Net(name).build(INPUTS, 1)


def test_an_average_is_of_log_odds_or_of_probabilities() -> None:
    x = torch.tensor([[4.0, -2.0, 1.0]])
    assert Net("average").build(LOGITS, 1)(x).logits_BK == pytest.approx(1.0)
    of_three = Net("average").build(Inputs((Field("input 0", 0, 3, False), Field("input 1", 3, 3, False))), 3)
    assert of_three(torch.cat([x, x + 1], 1)).logits_BK.tolist() == [[4.5, -1.5, 1.5]]
    mean = torch.sigmoid(x).mean()
    found = Net("average", {"of": "probability"}).build(LOGITS, 1)(x).logits_BK
    assert torch.sigmoid(found)[0, 0] == pytest.approx(float(mean), abs=1e-6)


def test_a_staircase_is_the_isotonic_regression_of_equal_parts() -> None:
    rng = np.random.default_rng(0)
    score = rng.normal(size=2000)
    label = (rng.random(2000) < 1 / (1 + np.exp(1 - score))).astype(np.float32)
    edges, levels = staircase(torch.from_numpy(score), torch.from_numpy(label), 40)
    part = np.searchsorted(edges.numpy(), score, side="right")
    assert np.bincount(part).tolist() == [50] * 40
    shares = (np.bincount(part, label) + label.mean()) / 51
    expected = IsotonicRegression().fit(np.arange(40), shares).predict(np.arange(40))
    assert np.allclose(levels.numpy(), expected, atol=1e-5)


def test_a_blend_is_its_best_point_of_the_grid() -> None:
    rng = np.random.default_rng(1)
    hidden = rng.normal(size=(4000, 2))
    label = (rng.random(4000) < 1 / (1 + np.exp(-2 * hidden.sum(1)))).astype(np.float32)
    logits = torch.from_numpy(np.column_stack([3 * hidden[:, 0], hidden[:, 1] - 5, rng.normal(size=4000)])).float()
    net = Net("blend", {"stairs": 20}).build(LOGITS, 1)
    assert torch.allclose(torch.sigmoid(net(logits).logits_BK)[:, 0], torch.sigmoid(logits).mean(1), atol=1e-5)
    said = net.choose(logits, torch.from_numpy(label))
    assert said["logloss"] == pytest.approx(log_loss(label, net(logits).logits_BK[:, 0]), abs=1e-5)
    assert net.weight_M.sum() == pytest.approx(1) and net.weight_M[2] == 0
    calibrated = net.calibrated(logits)
    for weights in simplex(3, 10):
        blended = torch.logit((calibrated * torch.tensor(weights)).sum(1))
        assert said["logloss"] <= log_loss(label, blended) + 1e-6, weights
    assert len({*map(tuple, simplex(3, 10))}) == 66
    assert said["error_correlation.0.1"] < 1


def test_a_group_sees_its_own_layer_alone() -> None:
    net = Net("grouped", {"mlp": [16], "groups": [2, 3], "width": 16}).build(INPUTS, 5)
    out = net(rows())
    for k in range(5):
        mine, other = (net.groups[m].own.weight for m in ((0, 1) if k < 2 else (1, 0)))
        found = torch.autograd.grad(out.logits_BK[:, k].sum(), [mine, other], retain_graph=True)
        assert found[0].any() and not found[1].any()
    assert torch.allclose(out.logits_BK[:, :2].norm(dim=1), torch.tensor(2**0.5))
    assert torch.allclose(out.logits_BK[:, 2:].norm(dim=1), torch.tensor(3**0.5))
    alone = Net("grouped", {"mlp": [16], "groups": [1, 2], "width": 16}).build(INPUTS, 3)(rows()).logits_BK[:, 0]
    assert alone.abs().std() > 0.001  # on a sphere it would be 0


def test_missing_and_unknown_options_are_named() -> None:
    assert Net("mlp", {"layer": [3]}).problems() == [
        "mlp needs 'layers'",
        "mlp has no option 'layer'; known: layers, norm, dropout",
    ]


LAYERS = "mlp: layers is a list, each a whole number, at least 1 and below 16385, found "


@pytest.mark.parametrize(
    ("name", "options", "problem"),
    [
        ("mlp", {"layers": [8, 0]}, f"{LAYERS}[8, 0]"),
        ("mlp", {"layers": [True]}, f"{LAYERS}[True]"),
        ("mlp", {"layers": 8}, f"{LAYERS}8"),
        ("mlp", {"layers": [8], "dropout": 1}, "mlp: dropout is a number, at least 0 and below 1, found 1"),
        ("mlp", {"layers": [8], "norm": None}, "mlp: norm is a text, found None"),
        (
            "dcn_v2",
            {"mlp": [8], "rank": 2.0},
            "dcn_v2: rank is a whole number, at least 1 and below 16385 or null, found 2.0",
        ),
    ],
)
def test_options_that_a_net_cannot_have_are_named(name: str, options: dict[str, object], problem: str) -> None:
    assert Net(name, options).problems() == [problem]


def test_options_that_a_net_has_are_no_problem() -> None:
    assert all(Net(name, options).problems() == [] for name, options in OPTIONS.items())


def test_options_of_an_annotation_of_ones_own_are_left_to_the_net(monkeypatch: pytest.MonkeyPatch) -> None:
    def own(inputs: Inputs, labels: int, *, by: dict[str, int], text: "Unseen", bare=3) -> None: ...  # noqa: F821

    monkeypatch.setitem(NETS, "own", own)
    assert Net("own", {"by": {"a": 1}, "text": object(), "bare": "x"}).problems() == []
