"""Learning the rows instead of the model: a few invented rows on which training leads to a good model.

The inner problem trains a head on the invented rows by plain gradient steps; the outer one moves rows and step sizes so
that the trained head does well on real rows, through all inner steps. Ids cannot be invented, so rows are vectors that
enter behind the lookup, for one set of frozen tables.
"""

# Shapes: B real rows, N invented rows, E width of the input vector, S inner steps.

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from recdistill.errors import TrainingError
from recdistill.losses.supervised import bce

Parameters = dict[str, Tensor]
Batches = Iterable[tuple[Tensor, Tensor]]  # input vectors (B, E) and labels (B,)
Draw = Callable[[int], nn.Module]  # a fresh head for a seed; maps (B, E) to logits (B,)


@dataclass(frozen=True)
class Rows:
    """Invented rows: input vectors (N, E), labels (N,), and the step size of each inner step (S,)."""

    embed_NE: Tensor
    label_N: Tensor
    rate_S: Tensor

    def train(self, head: nn.Module) -> nn.Module:
        """The head after the inner steps."""
        learned = inner_steps(head, parameters_of(head), self.embed_NE, self.label_N, self.rate_S, create_graph=False)
        with torch.no_grad():
            for name, value in head.named_parameters():
                value.copy_(learned[name])
        return head


@dataclass(frozen=True)
class Course:
    """How rows are learned.

    Attributes:
        rows: how many; their labels alternate between 0 and 1.
        steps: inner steps.
        epochs: passes over the real rows.
        rate: first size of an inner step.
        known_start: always the same start, or a fresh one for every real batch.
        adam: learning rate and betas for rows and step sizes.
        seed: of the first rows, and of the starts.
    """

    rows: int
    steps: int
    epochs: int = 1
    rate: float = 0.02
    known_start: bool = True
    adam: tuple[float, float, float] = (0.01, 0.5, 0.999)
    seed: int = 0


def distill_rows(draw: Draw, batches: Callable[[], Batches], width: int, course: Course) -> Rows:
    """Rows that train a head well.

    ``w_{s+1} = w_s - r_s grad L(X, y; w_s)`` over the inner steps, then ``L(real batch; w_S)`` is minimised over X and
    over the raw rates, ``r = softplus(raw)``, through all of the steps.

    Args:
        draw: a fresh head for a seed; its parameters are where the inner steps start.
        batches: real rows, in the order of one epoch.
        width: E, of the input vectors.
        course: how many rows, steps, and so on.

    Raises:
        TrainingError: there are fewer than two rows, or no step.

    Source: D1, Dataset Distillation, Wang et al., 2018, algorithm 1.
    Departure: rows are input vectors behind frozen tables, and one set of rows serves all steps.
    """
    if course.rows < 2 or course.steps < 1:
        raise TrainingError(f"distill_rows: needs two rows and one step at least, found {course.rows}, {course.steps}")
    generator = torch.Generator().manual_seed(course.seed)
    embed_NE = torch.randn(course.rows, width, generator=generator).requires_grad_()
    label_N = torch.arange(course.rows).remainder(2).float()
    raw_S = torch.full((course.steps,), course.rate).expm1().log().requires_grad_()  # softplus of it is the rate
    rate, *betas = course.adam
    adam = torch.optim.Adam([embed_NE, raw_S], rate, (betas[0], betas[1]))
    for number, (real_BE, real_B) in enumerate(batch for _ in range(course.epochs) for batch in batches()):
        head = draw(course.seed if course.known_start else course.seed + number)
        learned = inner_steps(head, parameters_of(head), embed_NE, label_N, F.softplus(raw_S), create_graph=True)
        outer = bce(functional_call(head, learned, (real_BE,)), real_B).mean()
        adam.zero_grad()
        outer.backward()
        adam.step()
    return Rows(embed_NE.detach(), label_N, F.softplus(raw_S).detach())


def parameters_of(head: nn.Module) -> Parameters:
    """The parameters of a head, as leaves of their own."""
    return {name: value.detach().clone().requires_grad_() for name, value in head.named_parameters()}


def inner_steps(
    head: nn.Module, start: Parameters, embed_NE: Tensor, label_N: Tensor, rate_S: Tensor, *, create_graph: bool
) -> Parameters:
    """The parameters after a gradient step for each rate, differentiable in rows and rates with ``create_graph``."""
    found = start
    for rate in rate_S:
        loss = bce(functional_call(head, found, (embed_NE,)), label_N).mean()
        gradients = torch.autograd.grad(loss, list(found.values()), create_graph=create_graph)
        found = {name: value - rate * g for (name, value), g in zip(found.items(), gradients, strict=True)}
    return found


def labelled(batches: Batches, mean_E: Tensor, std_E: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The rows whose label is known, with standardised input vectors."""
    for embed_BE, label_B in batches:
        known = ~torch.isnan(label_B)
        if bool(known.any()):
            yield (embed_BE[known] - mean_E) / std_E, label_B[known]
