"""Poolings of sequences against their equations, and what all of them have in common."""

import io

import pytest
import torch
from torch import Tensor

from recdistill.errors import TrainingError
from recdistill.nets.inputs import Field, Inputs
from recdistill.nets.sequences import POOLS, build_pool, padded, softmax_over_tokens

WIDTH = 4
INPUTS = Inputs((Field("item", 0, WIDTH, embedded=True), Field("price", WIDTH, 1, embedded=False)))
OPTIONS = {"mean": {}, "target_attention": {"target": "item"}, "self_attention": {"heads": 2, "positions": 8}}


def pool(name: str, **options: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_pool({name: {**OPTIONS[name], **options}}, INPUTS, WIDTH)


def given(lengths: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    tokens_TD = torch.randn(sum(lengths), WIDTH, generator=generator)
    return torch.randn(len(lengths), INPUTS.width, generator=generator), tokens_TD, torch.tensor(lengths)


def test_padding_puts_each_token_in_its_row() -> None:
    found = padded(torch.arange(6.0).unsqueeze(1), torch.tensor([2, 0, 3, 1]))
    assert found.squeeze(2).tolist() == [[0, 1, 0], [0, 0, 0], [2, 3, 4], [5, 0, 0]]
    assert padded(torch.zeros(0, 2), torch.tensor([0, 0])).shape == (2, 1, 2)
    assert padded(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64)).shape == (0, 1, 2)


@pytest.mark.parametrize("name", POOLS)
def test_a_row_is_pooled_alike_whoever_stands_beside_it(name: str) -> None:
    module = pool(name)
    flat_BE, tokens_TD, lengths_B = given([3, 1, 0, 5])
    together, _ = module(flat_BE, padded(tokens_TD, lengths_B), lengths_B)
    starts = [0, 3, 4, 4]
    for i, start in enumerate(starts):
        length = lengths_B[i : i + 1]
        alone, _ = module(flat_BE[i : i + 1], padded(tokens_TD[start : start + int(length)], length), length)
        assert torch.allclose(together[i], alone[0], atol=1e-6)


@pytest.mark.parametrize("name", POOLS)
def test_an_empty_sequence_is_the_zero_vector_and_receives_no_gradient(name: str) -> None:
    module = pool(name)
    flat_BE, tokens_TD, lengths_B = given([0, 2])
    tokens_TD.requires_grad_()
    vector_BD, weight_BL = module(flat_BE, padded(tokens_TD, lengths_B), lengths_B)
    assert not vector_BD[0].any() and not weight_BL[0].any()
    assert bool(vector_BD[1].any())
    (gradient,) = torch.autograd.grad(vector_BD.pow(3).sum(), tokens_TD)
    assert bool(torch.isfinite(gradient).all()) and bool(gradient.any())


@pytest.mark.parametrize("name", POOLS)
def test_a_scripted_pooling_equals_the_eager_one(name: str) -> None:
    module = pool(name).eval()
    saved = io.BytesIO()
    torch.jit.save(torch.jit.script(module), saved)
    saved.seek(0)
    flat_BE, tokens_TD, lengths_B = given([3, 0, 2])
    tokens_BLD = padded(tokens_TD, lengths_B)
    expected, found = module(flat_BE, tokens_BLD, lengths_B), torch.jit.load(saved)(flat_BE, tokens_BLD, lengths_B)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_the_mean_is_the_mean() -> None:
    flat_BE, tokens_TD, lengths_B = given([3, 2])
    found, weight_BL = pool("mean")(flat_BE, padded(tokens_TD, lengths_B), lengths_B)
    assert torch.allclose(found, torch.stack([tokens_TD[:3].mean(0), tokens_TD[3:].mean(0)]))
    assert torch.allclose(weight_BL, torch.tensor([[1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0.0]]))


@pytest.mark.parametrize("normalise", [False, True])
def test_target_attention_follows_its_equation(normalise: bool) -> None:
    module = pool("target_attention", normalise=normalise)
    flat_BE, tokens_TD, lengths_B = given([3, 2])
    found, weight_BL = module(flat_BE, padded(tokens_TD, lengths_B), lengths_B)
    for row, tokens in enumerate((tokens_TD[:3], tokens_TD[3:])):
        target = flat_BE[row, :WIDTH]
        scores = torch.stack([module.relevance(torch.cat([t, target, t - target, t * target])) for t in tokens])
        weights = torch.softmax(scores, 0) if normalise else scores
        assert torch.allclose(found[row], (weights * tokens).sum(0), atol=1e-6)
        assert torch.allclose(weight_BL[row, : len(tokens)], weights.squeeze(1), atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 40.0, 1e4])
def test_weights_of_tokens_add_up_to_one_whatever_stands_beside_them(scale: float) -> None:
    """A row is weighed alike in any batch: as alone, without the places behind its last token."""
    score_BL = torch.tensor([[-3.0, -3.1, 7.0, 9.0], [2.0, 1.0, 0.5, -1.0], [5.0, 5.0, 5.0, 5.0]]) * scale
    lengths = [2, 4, 0]
    there_BL = torch.tensor([[float(place < length) for place in range(4)] for length in lengths])
    found_BL = softmax_over_tokens(score_BL, there_BL)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(found_BL[row, :length], torch.softmax(score_BL[row, :length], 0))
        assert not bool(found_BL[row, length:].any())


def test_self_attention_agrees_with_pytorchs_own_heads() -> None:
    module = pool("self_attention")
    reference = torch.nn.MultiheadAttention(WIDTH, 2, batch_first=True)
    with torch.no_grad():
        reference.in_proj_weight.copy_(module.project.weight)
        reference.in_proj_bias.copy_(module.project.bias)
        reference.out_proj.load_state_dict(module.mix.state_dict())
    flat_BE, tokens_TD, lengths_B = given([5])
    x = tokens_TD + module.position[torch.arange(5).flip(0)]
    mixed = module.norm(x + reference(x.unsqueeze(0), x.unsqueeze(0), x.unsqueeze(0))[0][0])
    weights = torch.softmax(mixed @ module.query, 0)
    found, weight_BL = module(flat_BE, padded(tokens_TD, lengths_B), lengths_B)
    assert torch.allclose(found[0], weights @ mixed, atol=1e-5)
    assert torch.allclose(weight_BL[0], weights, atol=1e-6)


def test_a_target_must_be_an_embedded_column_of_the_same_width() -> None:
    with pytest.raises(TrainingError, match="the target 'price' must be an embedded column of width 4"):
        pool("target_attention", target="price")
    with pytest.raises(TrainingError, match="must divide the width 4"):
        pool("self_attention", heads=3)
