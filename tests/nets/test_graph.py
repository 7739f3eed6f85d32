"""Graph convolution against dense matrices, and its gradients against PyTorch's own."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recdistill.data.graph import Graph
from recdistill.errors import ShapeError, TrainingError
from recdistill.nets.graph import ACTIVATIONS, Bipartite, CrossGcn, LightGcn, Sparse, inner, product
from tests.oracles import graph as oracle

USERS, ITEMS, WIDTH = 8, 10, 3
EDGES = st.sets(st.tuples(st.integers(2, 7), st.integers(2, 9)), min_size=1, max_size=30)


def graph_of(edges) -> Graph:
    return Graph.of(USERS, ITEMS, *(torch.tensor(side) for side in zip(*edges, strict=True)))


def halves(graph: Graph, dtype: torch.dtype = torch.float64) -> Bipartite:
    return Bipartite(*(Sparse(*half) for half in graph.normalised(dtype)))


def some_edges(count: int = 25) -> set[tuple[int, int]]:
    rng = np.random.default_rng(0)
    return {(int(u), int(i)) for u, i in zip(rng.integers(2, USERS, count), rng.integers(2, ITEMS, count), strict=True)}


def vectors(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(n, WIDTH, generator=generator, dtype=dtype) for n in (USERS, ITEMS))


@given(EDGES, st.integers(0, 4))
@settings(deadline=None)
def test_light_gcn_is_the_mean_of_powers_of_the_adjacency(edges, layers) -> None:
    user, item = vectors()
    found = torch.cat(LightGcn(halves(graph_of(edges)), layers=layers)(user, item))
    expected = oracle.propagate(oracle.adjacency(edges, USERS, ITEMS), torch.cat([user, item]).numpy(), layers)
    assert np.allclose(found.numpy(), expected, atol=1e-12)


def test_a_node_without_edges_keeps_a_share_of_its_own_vector() -> None:
    user, item = vectors()
    found = LightGcn(halves(graph_of({(2, 2)})), layers=3)(user, item)
    assert torch.allclose(found[0][3:], user[3:] / 4)
    assert torch.allclose(found[0][2], (2 * user[2] + 2 * item[2]) / 4)


def test_gradients_are_those_of_a_dense_product_also_the_second_ones() -> None:
    graph = graph_of(some_edges())
    user_half, item_half = halves(graph)
    dense, item = graph.normalised(torch.float64).user.dense(ITEMS), vectors()[1].requires_grad_()
    weight = torch.randn(USERS, WIDTH, dtype=torch.float64)
    found = torch.autograd.grad((product(user_half, item, item_half) * weight).square().sum(), item)[0]
    expected = torch.autograd.grad((dense @ item * weight).square().sum(), item)[0]
    assert torch.allclose(found, expected)
    assert torch.autograd.gradcheck(lambda x: product(user_half, x, item_half), item)
    assert torch.autograd.gradgradcheck(lambda x: product(user_half, x, item_half).square(), item)


def test_the_gradient_of_light_gcn_reaches_the_tables_over_every_layer() -> None:
    graph = graph_of(some_edges())
    whole = torch.tensor(oracle.adjacency(set(zip(graph.user_E.tolist(), graph.item_E.tolist(), strict=True)), 8, 10))
    first = torch.cat(vectors()).requires_grad_()
    layers = [first, whole @ first, whole @ whole @ first]
    expected = torch.autograd.grad((sum(layers) / 3)[2].square().sum(), first)[0]
    found = torch.autograd.grad(LightGcn(halves(graph), layers=2)(first[:8], first[8:])[0][2].square().sum(), first)[0]
    assert torch.allclose(found, expected)
    assert int((found.abs().sum(1) > 0).sum()) > 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_is_near(dtype: torch.dtype) -> None:
    adjacency, (user, item) = graph_of(some_edges()), vectors()
    exact = torch.cat(LightGcn(halves(adjacency))(user, item))
    rough = torch.cat(LightGcn(halves(adjacency, torch.float32))(user.to(dtype), item.to(dtype)))
    assert rough.dtype == dtype
    assert torch.allclose(rough.double(), exact, atol=1e-6 if dtype == torch.float32 else 0.03)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("own", [False, True])
def test_the_cross_variant_equals_its_equation(activation: str, own: bool) -> None:
    edges = some_edges()
    torch.manual_seed(0)
    net = CrossGcn(halves(graph_of(edges)), width=WIDTH, layers=2, activation=activation, own=own).double()
    for linear in (*net.convolve, *net.cross):
        torch.nn.init.normal_(linear.weight, std=0.5)
    whole = torch.tensor(oracle.adjacency(edges, USERS, ITEMS))
    first = layer = total = torch.cat(vectors())
    for w, v in zip(net.convolve, net.cross, strict=True):
        arrived = whole @ layer
        mixed = arrived + layer if own else arrived
        layer = ACTIVATIONS[activation](mixed @ w.weight.t()) + (first * arrived) @ v.weight.t()
        total = total + layer
    found = torch.cat(net(*vectors()))
    assert torch.allclose(found, total / 3)
    found.sum().backward()
    assert all(linear.weight.grad.abs().sum() > 0 for linear in (*net.convolve, *net.cross))


def test_the_cross_variant_begins_as_plain_propagation() -> None:
    adjacency = halves(graph_of(some_edges()))
    plain = LightGcn(adjacency, layers=2)(*vectors())
    begun = CrossGcn(adjacency, width=WIDTH, layers=2, activation="none").double()(*vectors())
    assert all(torch.allclose(a, b) for a, b in zip(plain, begun, strict=True))


def test_the_adjacency_moves_with_the_net_and_is_not_part_of_its_state() -> None:
    net = CrossGcn(halves(graph_of(some_edges())), width=WIDTH)
    assert set(net.state_dict()) == {f"{part}.{k}.weight" for part in ("convolve", "cross") for k in range(3)}
    assert LightGcn(halves(graph_of(some_edges()))).state_dict() == {}
    assert net.to("meta").propagation.user_weights.is_meta


def test_what_does_not_fit_is_refused() -> None:
    adjacency = halves(graph_of(some_edges()))
    user, item = vectors()
    with pytest.raises(ShapeError, match="a matrix of 10 columns"):
        LightGcn(adjacency)(user, item[:9])
    with pytest.raises(ShapeError, match="a matrix of 8 columns"):
        LightGcn(adjacency)(user[:7], item)
    with pytest.raises(TrainingError, match="layers must not be negative"):
        LightGcn(adjacency, layers=-1)
    with pytest.raises(TrainingError, match="expected one of sigmoid, tanh"):
        CrossGcn(adjacency, width=3, activation="relu")


def test_scores_of_candidates_are_inner_products() -> None:
    generator = torch.Generator().manual_seed(0)
    user, item = torch.randn(4, 3, generator=generator), torch.randn(4, 5, 3, generator=generator)
    assert torch.allclose(inner(user, item), torch.stack([item[b] @ user[b] for b in range(4)]), atol=1e-6)
