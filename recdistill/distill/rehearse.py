"""Runs every term once on two rows of zeros, before any data is read, to find wrong layers and unequal widths.

Tables are not needed for it, because the widths of all vectors are known from the job alone.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch

from recdistill.data.batch import Candidates
from recdistill.distill.heads import TRIAL_ROWS, Heads, build_heads, shapes, trial_batch
from recdistill.distill.labels import METERED, Corrected
from recdistill.distill.layout import lay_out
from recdistill.distill.member import Member, Phase
from recdistill.distill.signal import Column, Remembered, Remembering, Scene, walk
from recdistill.distill.term import Term
from recdistill.errors import RecdistillError
from recdistill.spec.features import FeatureSpec
from recdistill.spec.graph import CandidatesSpec
from recdistill.spec.phases import FeedSpec


class Blank:
    """A memory of nothing, of one number a row or of several."""

    def __init__(self, signal: Remembering) -> None:
        self.shape = (METERED,) if isinstance(signal, Corrected) else ()

    def read(self, row_id_B: torch.Tensor) -> torch.Tensor:
        """Zeros."""
        return torch.zeros(len(row_id_B), *self.shape)


def rehearse(
    members: Sequence[Member], phases: Sequence[Phase], spec: FeatureSpec, feeds: Mapping[str, FeedSpec]
) -> list[str]:
    """What is wrong with the shapes of a job, one sentence each."""
    with torch.random.fork_rng(devices=[]):
        try:
            made = build_heads(members, lay_out(members, spec, defaultdict(lambda: 3)), lambda _: nullcontext())
        except (RecdistillError, ValueError, TypeError, IndexError) as error:
            return [str(error)]
        problems = [
            found
            for i, phase in enumerate(phases)
            for j, update in enumerate(phase.updates)
            for term in update.terms
            if (
                found := _tried(
                    term,
                    made,
                    feeds.get(update.feed),
                    f"phases.{i}.updates.{j}" if len(phase.updates) > 1 else f"phases.{i}",
                )
            )
        ]
    return [*problems, *_wrong_modules(phases, made), *_wrong_embeds(members, made), *_wrong_carries(phases, made)]


def _tried(term: Term, made: Heads, feed: FeedSpec | None, place: str) -> str | None:
    """Why a term cannot be computed on the rows of a feed."""
    columns = {part.name: torch.zeros(TRIAL_ROWS) for part in walk(term) if isinstance(part, Column)}
    memories = {part.key: Blank(part) for part in term.memories}
    candidates = None if feed is None or feed.candidates is None else _trial_candidates(feed.candidates)
    scene = Scene(made.trial, replace(trial_batch(), labels=columns, candidates=candidates), memories=memories)
    try:
        of_rows = [part for part in term.memories if isinstance(part, Remembered)]
        if wide := [str(part) for part in of_rows if part.signal.value(scene).dim() > 1]:
            return f"{place}: {', '.join(wide)}: one number is remembered of each row; name a logit"
        loss, weight = term.losses(scene)
        if loss.shape != weight.shape:
            return f"{place}: {term.words!r}: has {tuple(loss.shape[1:])} values for each row; compare single logits"
    except IndexError:
        return f"{place}: {term.words!r}: there is no such layer; {_layers(term, made)}"
    except (RecdistillError, RuntimeError, ArithmeticError) as error:
        return f"{place}: {term.words!r}: {error}"
    return None


def _trial_candidates(spec: CandidatesSpec) -> Candidates:
    """The first row with as many candidates as an anchor has, all of which are the second row."""
    width = spec.width + (1 if spec.in_batch else 0)
    own_AM = torch.zeros(1, width)
    own_AM[0, 0] = 1.0
    marks = {"own": own_AM, "taken": own_AM, "log_q": torch.zeros(1, width)}
    marks |= {"popularity": torch.zeros(1, width)} if spec.groups else {}
    return Candidates(spec.anchor, (torch.ones(1, width, dtype=torch.int64),), marks)


def _layers(term: Term, made: Heads) -> str:
    return ", ".join(f"{name} has {len(made.trial[name].hidden)} hidden layers" for name in sorted(term.members))


def _wrong_modules(phases: Sequence[Phase], made: Heads) -> list[str]:
    """Parts to be trained that no net has."""
    found = []
    for i, phase in enumerate(phases):
        for part in (part for update in phase.updates for part in update.parts if part.path not in ("", "tables")):
            known = [name for name, _ in made.heads[part.member].named_modules() if name]
            if part.path not in known:
                found.append(f"phases.{i}.train: {part.member!r} has no module {part.path!r}; it has {known}")
    return found


def _wrong_carries(phases: Sequence[Phase], made: Heads) -> list[str]:
    """Parameters that are to be carried between members with other columns, or other widths of them."""
    found = []
    for i, phase in enumerate(phases):
        for to, of in (pair for pair in phase.carry if {*pair} <= made.heads.keys()):
            reads = [(made.layouts[name].columns, made.layouts[name].pooled) for name in (to, of)]
            if reads[0] != reads[1] or shapes(made.heads[to]) != shapes(made.heads[of]):
                found.append(
                    f"phases.{i}.carry.{to}: {to!r} and {of!r} read other columns, or have them in other widths; give "
                    "both the same view"
                )
    return found


def _wrong_embeds(members: Sequence[Member], made: Heads) -> list[str]:
    """Signals in place of a looked-up vector that have another width."""
    found = []
    for member in members:
        if member.embed is not None:
            value = member.embed.value(Scene(made.trial, trial_batch()))
            width, wanted = value.shape[-1], made.layouts[member.name].flat.width
            if value.dim() != 2 or width != wanted:
                found.append(
                    f"members.{member.name}.view.embed: has {width if value.dim() == 2 else 1} values a row, but the "
                    f"looked-up vector has {wanted}; make them equal"
                )
    return found
