"""Every term once on two rows of zeros, before any data is read: wrong layers and widths that do not fit are named.

Tables are not needed for it, because the widths of all vectors are known from the job alone.
"""

from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext

import torch

from recdistill.distill.heads import TRIAL_ROWS, Heads, build_heads, trial_batch
from recdistill.distill.layout import lay_out
from recdistill.distill.member import Member, Phase
from recdistill.distill.signal import Column, Remembered, Scene, walk
from recdistill.distill.term import Term
from recdistill.errors import RecdistillError
from recdistill.spec.features import FeatureSpec


class Blank:
    """A memory of nothing."""

    def read(self, row_id_B: torch.Tensor) -> torch.Tensor:
        """Zeros."""
        return torch.zeros(len(row_id_B))


def rehearse(members: Sequence[Member], phases: Sequence[Phase], spec: FeatureSpec) -> list[str]:
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
            if (found := _tried(term, made, f"phases.{i}.updates.{j}" if len(phase.updates) > 1 else f"phases.{i}"))
        ]
    return [*problems, *_wrong_modules(phases, made), *_wrong_embeds(members, made)]


def _tried(term: Term, made: Heads, place: str) -> str | None:
    """Why a term cannot be computed."""
    columns = {part.name: torch.zeros(TRIAL_ROWS) for part in walk(term) if isinstance(part, Column)}
    batch = trial_batch()
    rows = type(batch)(
        batch.row_id_B, batch.serving, columns, batch.weight_B, None, batch.row_id_B, batch.row_id_B
    )  # fmt: skip
    memories = {part.key: Blank() for part in walk(term) if isinstance(part, Remembered)}
    try:
        term.losses(Scene(made.trial, rows, memories=memories))
    except IndexError:
        return f"{place}: {term.words!r}: there is no such layer; {_layers(term, made)}"
    except (RecdistillError, RuntimeError) as error:
        return f"{place}: {term.words!r}: {error}"
    return None


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
