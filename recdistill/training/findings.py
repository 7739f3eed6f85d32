"""What a finished training says of itself beside scores.

Which rows it has chosen, what noisy labels are worth, how alike the members of an ensemble are, and where linear
students have ended. Every finding is a number under a name; a run reports them over seeds.
"""

import math
from collections.abc import Collection, Iterator, Sequence

import numpy as np
import torch

from recdistill.data.reader import Reader
from recdistill.data.scores import sigmoid
from recdistill.distill.combine import Weighted
from recdistill.distill.compile import Plan
from recdistill.distill.member import Phase
from recdistill.distill.schedule import Now
from recdistill.distill.signal import CERTAIN, Column, Logit, walk
from recdistill.distill.term import Term
from recdistill.evaluation import log_loss
from recdistill.evaluation.noise import flips, purity, trust
from recdistill.training.engine import Engine
from recdistill.training.linear import of_linear_students
from recdistill.training.play import play


def findings(engine: Engine, plan: Plan, valid: Reader) -> dict[str, float]:
    """All findings of a finished training.

    Args:
        engine: what was trained, after its last phase.
        plan: members and phases.
        valid: rows that were not trained on.
    """
    phase, labels = plan.phases[-1], plan.columns[: plan.labels]
    noisy = list(on_noisy_columns(phase, labels))
    found = {**of_choices(engine, phase, noisy), **of_noisy_columns(engine, phase, noisy, valid)}
    found |= of_ensembles(engine, phase, valid, plan.repeats)
    found |= of_linear_students(engine, phase, valid)
    return {name: round(float(value), 6) for name, value in found.items() if math.isfinite(value)}


def on_noisy_columns(phase: Phase, labels: Sequence[str]) -> Iterator[tuple[Term, str]]:
    """The terms whose target is a raw column that is no label of the job, and the column."""
    for term in phase.terms:
        for name in sorted({p.name for target in term.targets for p in walk(target) if isinstance(p, Column)}):
            if name not in labels:
                yield term, name


def of_choices(engine: Engine, phase: Phase, noisy: Sequence[tuple[Term, str]]) -> dict[str, float]:
    """Of each term on a noisy column that selects rows: the share that it keeps at the end, and how pure it is."""
    main = engine.train.selection.labels[0]
    terms = [(term, name) for term, name in noisy if term.rows is not None]
    if not terms:
        return {}
    planned = engine.planned_steps(phase)
    chosen: dict[str, list[torch.Tensor]] = {term.words: [] for term, _ in terms}
    labels: dict[str, list[torch.Tensor]] = {name: [] for name in (main, *(name for _, name in terms))}
    with torch.no_grad():
        for batch in engine.train.shuffled(engine.settings.batch, seed=engine.seed, epoch=0):
            scene = play(
                engine.cast, sorted(phase.members), batch, seed=engine.seed, now=Now(planned, planned)
            ).scene  # fmt: skip
            for term, _ in terms:
                assert term.rows is not None
                chosen[term.words].append(term.rows.mask(scene))
            for name, parts in labels.items():
                parts.append(batch.labels[name])
    found = {}
    truth_N = torch.cat(labels[main]).numpy()
    for term, name in terms:
        seen = purity(torch.cat(chosen[term.words]).numpy(), torch.cat(labels[name]).numpy(), truth_N)
        who = ", ".join(sorted(term.learner.members))
        found[f"{who}: share of rows kept"] = seen.kept
        found[f"{who}: kept rows whose {name!r} is {main!r}"] = seen.right
        found[f"{who}: all rows whose {name!r} is {main!r}"] = seen.before
    return found


def of_noisy_columns(
    engine: Engine, phase: Phase, noisy: Sequence[tuple[Term, str]], valid: Reader
) -> dict[str, float]:
    """Of each noisy column that is learned from: how often it is wrong, and its best weight beside a frozen teacher."""
    main = engine.train.selection.labels[0]
    columns = dict.fromkeys(name for _, name in noisy)
    if not columns:
        return {}
    teachers = [name for name in sorted(phase.members - phase.trained) if engine.cast.members[name].scored]
    logits, _, labels = engine.score(teachers, valid)
    found = {}
    for name in columns:
        wrong = flips(labels[name], labels[main])
        found[f"{name!r} against {main!r}: false positives"] = wrong.false_positive
        found[f"{name!r} against {main!r}: false negatives"] = wrong.false_negative
        unbiased_N = (labels[name] - wrong.false_positive) / (1 - wrong.false_positive - wrong.false_negative)
        for teacher, logit_NK in logits.items():
            for how, label_N in (("", labels[name]), (", unbiased", unbiased_N)):
                risks = trust(label_N, sigmoid(logit_NK[:, 0]), labels[main])
                found[f"best weight of {name!r}{how} beside {teacher}"] = risks.weight
    return found


def of_ensembles(engine: Engine, phase: Phase, valid: Reader, repeats: Collection[str]) -> dict[str, float]:
    """Of members whose mean teaches: how good they and their mean are, and how much their errors have in common.

    Views of one member are no ensemble: without their distortion they ``repeat`` it.
    """
    members = engine.cast.members
    found: dict[str, float] = {}
    for names in (each for each in dict.fromkeys(ensembles(phase)) if not {*each} & {*repeats}):
        if len({members[name].labels[0] for name in names}) > 1 or not all(members[name].scored for name in names):
            continue
        logits, _, labels = engine.score(list(names), valid)
        label_N = labels[valid.selection.labels[members[names[0]].labels[0]]]
        known_N = ~np.isnan(label_N)
        logit_MN, label_N = np.stack([logits[name][known_N, 0] for name in names]), label_N[known_N]
        probability_MN = sigmoid(logit_MN)
        mean_N = probability_MN.mean(0).clip(CERTAIN, 1 - CERTAIN)
        who = ", ".join(names)
        found[f"{who}: log loss of one"] = float(np.mean([log_loss(label_N, logit_N) for logit_N in logit_MN]))
        found[f"{who}: log loss of their mean"] = log_loss(label_N, np.log(mean_N / (1 - mean_N)))
        with np.errstate(invalid="ignore", divide="ignore"):  # a member that is never wrong is like no other
            alike_MM = np.asarray(np.corrcoef(probability_MN - label_N))
        found[f"{who}: correlation of errors"] = float(alike_MM[np.triu_indices(len(names), 1)].mean())
    return found


def ensembles(phase: Phase) -> Iterator[tuple[str, ...]]:
    """The members of each mean of main logits that is a target of the phase."""
    for part in (part for term in phase.terms for target in term.targets for part in walk(target)):
        signals = part.signals if isinstance(part, Weighted) else ()
        names = tuple(signal.member for signal in signals if isinstance(signal, Logit) and signal.label == 0)
        if len(set(names)) == len(signals) > 1:
            yield names
