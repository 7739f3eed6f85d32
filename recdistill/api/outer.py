"""Loops around training, from Python: search over edits, and rows that are learned instead of a model."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from recdistill.api.run import Run
from recdistill.data.reader import Reader
from recdistill.distill.compile import net_of
from recdistill.errors import RunError
from recdistill.evaluation import auc
from recdistill.nets.inputs import Inputs
from recdistill.runs.console import Reporter
from recdistill.runs.logs import encoded, raw_log
from recdistill.runs.rescore import Finished
from recdistill.search.bilevel import Course, Rows, distill_rows, labelled
from recdistill.search.reinforce import Found, Reinforce, Trial, compression_reward
from recdistill.training.play import play
from recdistill.training.reading import reader_of
from recdistill.training.sharding import process_group

__all__ = ["Course", "Found", "LearnedRows", "Reinforce", "Rows", "Trial", "compression_reward", "learn_rows"]


class LogitOnly(nn.Module):
    """A net that answers with its logit alone; its parameters are drawn by a seed."""

    def __init__(self, described: Mapping[str, Any], inputs: Inputs, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = net_of(described).build(inputs, 1)

    def forward(self, embed_BE: Tensor) -> Tensor:
        """Logits, (B,)."""
        logit_B: Tensor = self.net(embed_BE).logits_BK[:, 0]
        return logit_B


@dataclass(frozen=True)
class LearnedRows:
    """Rows that were learned, and how a net that is trained on them alone ranks the test rows.

    Attributes:
        rows: the rows, standardised input vectors behind the lookup.
        auc: of a net trained on them, on the test rows.
        random_auc: the same on as many real rows, drawn at random, with the learned step sizes.
    """

    rows: Rows
    auc: float
    random_auc: float


def learn_rows(
    run: Run,
    net: Mapping[str, Any],
    *,
    member: str,
    course: Course,
    batch: int = 1024,
) -> LearnedRows:
    """A few rows that train a net as a whole log does (D1), on the frozen tables of a member of a run.

    Args:
        run: the finished run.
        net: the net to be trained on them, as `mlp` and others describe it.
        member: whose input vectors the rows are.
        course: how many rows, how many steps a net takes on them, and so on.
        batch: real rows of one outer step.

    Raises:
        RunError: the run has no such member, or several copies of it, or is not complete.
    """
    finished = Finished.open(run.folder)
    name, *others = finished.copies(member, out_of_fold=False)
    if others:
        raise RunError(f"{run.folder}: {member!r} has {len(others) + 1} copies; name one of them, {name!r} for example")
    reporter = Reporter(Console(quiet=True))
    log, spec = raw_log(finished.job, finished.spec, reporter)
    data = encoded(spec, log, finished.job, finished.job.train.fitted_on, reporter).log
    with process_group():
        cast = finished.engine(data, finished.seed).cast
        inputs = cast.layout.members[name].inputs

        def vectors(reader: Reader) -> Iterator[tuple[Tensor, Tensor]]:
            for each in reader.in_order(batch):
                with torch.no_grad():
                    yield play(cast, [name], each)[name].embed_BE, each.labels[finished.job.label[0]]

        train, test = (list(vectors(reader_of(finished.plan, data, (split,)))) for split in ("train", "test"))
    everything = torch.cat([embed for embed, _ in train])
    mean_E, std_E = everything.mean(0), everything.std(0).clamp(min=1e-6)
    real = list(labelled(train, mean_E, std_E))
    learned = distill_rows(lambda seed: LogitOnly(net, inputs, seed), lambda: real, inputs.width, course)

    def judged(on: Rows) -> float:
        head = on.train(LogitOnly(net, inputs, course.seed))
        with torch.no_grad():
            found = [(head(x), y) for x, y in labelled(test, mean_E, std_E)]
        return auc(np.concatenate([y for _, y in found]), np.concatenate([z for z, _ in found]))

    embed, label = (torch.cat(parts) for parts in zip(*real, strict=True))
    drawn = torch.randperm(len(label), generator=torch.Generator().manual_seed(course.seed))[: course.rows]
    random = Rows(embed[drawn], label[drawn], learned.rate_S)
    return LearnedRows(learned, judged(learned), judged(random))
