"""Which labels of a member some term teaches; what predicts another one would be trained on nothing, and served."""

from collections.abc import Iterator, Mapping, Sequence

from recdistill.distill.checks import behind
from recdistill.distill.member import Member, Phase
from recdistill.distill.signal import Attention, Embed, Hidden, Logit, OfMember, flows, walk
from recdistill.distill.term import Term

Members = Mapping[str, Member]


def untaught(members: Sequence[Member], phases: Sequence[Phase], labels: Sequence[str]) -> list[str]:
    """Problems with members of several labels of which no term teaches some.

    Members that begin with parameters, or have modules, of others are left out: these may have learned it.

    Args:
        members: all members.
        phases: the phases.
        labels: the job's labels.
    """
    by_name = {member.name: member for member in members}
    terms = [term for phase in phases for term in phase.terms]
    reached = {found for term in terms for found in _reached(term, by_name)}
    given = {to for phase in phases for to, _ in phase.carry} | {m.name for m in members if m.warm_start is not None}
    lent = {name for m in members for owner, _ in m.share.borrowed.values() for name in (m.name, owner)}
    found = []
    for member in members:
        places = range(member.width) if member.scored and member.origin is None and member.net.learns else ()
        missing = [place for place in places if (member.name, place) not in reached]
        if member.name in given | lent or len(places) < 2 or not missing:
            continue
        names = [labels[k] for k in member.labels]
        outputs = ", ".join(f"{member.name}.logit.{names[place]}" for place in missing)
        rest = [name for place, name in enumerate(names) if place not in missing]
        found.append(
            f"members.{member.name}: no term teaches {outputs}, which would stay as it was drawn; add one, for example "
            f"bce({member.name}.logit.{names[missing[0]]}, {names[missing[0]]})"
            + (f", or say what the member predicts with `labels: [{', '.join(rest)}]`" if rest else "")
        )
    return found


def _reached(term: Term, members: Members) -> Iterator[tuple[str, int]]:
    """Members and places of their labels that a term has gradients for, also through what reads them."""
    read = [signal for name in behind(term.taught, members, live=True) for signal in members[name].signals]
    taught = [term.learner, *(signal for signal in (*term.targets, *read) if flows(signal))]
    for part in (part for signal in taught for part in walk(signal)):
        if isinstance(part, OfMember) and not isinstance(part, Hidden | Embed | Attention):
            member = members[part.member]
            places = [part.label] if isinstance(part, Logit) else range(member.width)
            yield from ((member.same or member.name, place) for place in places)
