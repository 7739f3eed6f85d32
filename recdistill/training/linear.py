"""What a finished training says of linear students that were taught another member's answers, and of nothing else.

Such a student, begun at zero, should end at the projection of its teacher onto the span of the rows; how far it fails
on other rows then depends on how these lie around the teacher's direction.
"""

# Shapes: N rows, D coordinates of what the student reads, the last of which is one.

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from recdistill.data.batch import Batch
from recdistill.data.reader import Reader
from recdistill.distill.member import Phase, Update
from recdistill.distill.signal import Logit, Signal
from recdistill.evaluation.alignment import Alignment, angle, disagreement, projection
from recdistill.losses.representation import l2
from recdistill.losses.response import soft
from recdistill.nets.towers import Mlp
from recdistill.training.engine import EVALUATION_BATCH, Engine
from recdistill.training.play import play

Floats = NDArray[np.float64]
PLENTY = 100_000  # rows, more than which tell nothing new
DEGREES = (30, 60, 80)
LEADS_TO_ITS_TARGET = (soft, l2)  # losses of two logits that are least where both are equal


@dataclass(frozen=True)
class Taught:
    """A linear student, its teacher's answer, and the feed on whose rows it is taught."""

    student: Logit
    teacher: Signal
    feed: str


def taught_linear(engine: Engine, phase: Phase) -> Iterator[Taught]:
    """The linear students, begun at zero, that a phase teaches the answers of others and nothing else."""
    for update in phase.updates:
        for term in update.terms:
            learner, alone = term.learner, sum(term.taught <= each.taught for each in phase.terms) == 1
            logits = all(isinstance(target, Logit) for target in term.targets)
            answers = logits and term.loss in LEADS_TO_ITS_TARGET and term.rows is None
            if isinstance(learner, Logit) and alone and answers and _is_linear(engine, update, learner.member):
                yield Taught(learner, term.targets[0], update.feed)


def _is_linear(engine: Engine, update: Update, name: str) -> bool:
    """Whether a member weighs fixed inputs and began without weights."""
    member, head = engine.cast.members[name], engine.cast.heads[name]
    fixed = not update.owns_tables(name) or not engine.cast.layout.members[name].banks
    plain = not [*head.pools.parameters(), *head.trunk.parameters()] and member.dropout == 0
    linear = isinstance(head.net, Mlp) and not head.net.stack.blocks
    return fixed and plain and linear and member.init == 0


def of_linear_students(engine: Engine, phase: Phase, valid: Reader) -> dict[str, float]:
    """Of each: how far it is from the projection, and on how many rows it fails, beside what was to be expected."""
    found: dict[str, float] = {}
    for taught in taught_linear(engine, phase):
        who, whom = taught.student.member, str(taught.teacher)
        x_ND, answer_N, _ = _seen(engine, taught, engine.feeds[taught.feed].epoch(EVALUATION_BATCH, seed=0, epoch=0))
        fresh_ND, target_N, logit_N = _seen(engine, taught, valid.in_order(EVALUATION_BATCH))
        teacher_D, ended_D = projection(fresh_ND, target_N), weights(engine, taught.student)
        among = Alignment.of(fresh_ND, teacher_D)
        expected_D = projection(x_ND, answer_N)
        found[f"{who}: distance to the projection, relative"] = float(
            np.linalg.norm(ended_D - expected_D) / np.linalg.norm(expected_D)
        )
        found[f"{who}: disagreement with {whom}"] = disagreement(logit_N, target_N)
        left_N = target_N - fresh_ND @ teacher_D
        found[f"{whom}: share that is linear in what {who} reads"] = float(1 - left_N.var() / target_N.var())
        for degrees in DEGREES:
            found[f"{whom}: share of rows at {degrees} degrees or more"] = float(among.tail(np.radians(degrees)))
        for rows in sizes(len(x_ND), x_ND.shape[1]):
            part_D = projection(x_ND[:rows], answer_N[:rows])
            name = f"projection onto {rows} rows"
            found[f"{name}: degrees to {whom}"] = float(np.degrees(angle(part_D, teacher_D)))
            found[f"{name}: disagreement"] = disagreement(fresh_ND @ part_D, target_N)
            found[f"{name}: disagreement, bound in the mean"] = among.bound(rows)
    return found


def sizes(rows: int, width: int) -> list[int]:
    """Numbers of rows of nested subsets: powers of two, and the most that tell something."""
    most = min(rows, width)
    return [*(2**k for k in range(most.bit_length()) if 2**k < most), most]


def weights(engine: Engine, student: Logit) -> Floats:
    """Weights and bias of a linear student, (D,)."""
    net = engine.cast.heads[student.member].net
    assert isinstance(net, Mlp)
    out = net.out
    parts = (out.weight[student.label], out.bias[student.label].reshape(1))
    return torch.cat(parts).detach().double().numpy(force=True)


def _seen(engine: Engine, taught: Taught, batches: Iterable[Batch]) -> tuple[Floats, Floats, Floats]:
    """What the student reads of rows, what its teacher answers, and what it answers itself."""
    read, answers, own = [], [], []
    with torch.no_grad():
        for batch in islice(batches, PLENTY // EVALUATION_BATCH):
            scene = play(engine.cast, [*engine.cast.members], batch, seed=engine.seed).scene
            read.append(scene.outputs[taught.student.member].embed_BE)
            answers.append(taught.teacher.value(scene))
            own.append(taught.student.value(scene))
    x_ND, target_N, logit_N = (torch.cat(part).double().numpy(force=True) for part in (read, answers, own))
    return np.concatenate([x_ND, np.ones((len(x_ND), 1))], 1), target_N, logit_N
