"""What must hold between members and phases before anything is trained; each problem is one sentence."""

from collections.abc import Iterable, Mapping, Sequence

from recdistill.distill.combine import Unseen
from recdistill.distill.member import RECORDED, Member, Phase, Update, home_of
from recdistill.distill.signal import All, Column, Embed, Hidden, Live, Logit, Remembered, Scenario, flows, walk
from recdistill.spec.features import FeatureSpec
from recdistill.spec.job import Job
from recdistill.spec.members import Best
from recdistill.spec.names import MARKS

SERVABLE = (Logit, All, Hidden, Embed)  # what a serving member may read of others
Members = Mapping[str, Member]


def check_members(members: Members, served: Sequence[str], spec: FeatureSpec) -> list[str]:
    """Problems with what members read and share."""
    found = []
    for member in members.values():
        if (loop := loop_through(member.name, members)) is not None:
            found.append(f"members.{member.name}.inputs: read each other in a circle, {' -> '.join(loop)}; cut it")
        found += _wrong_inputs(member, spec)
    for name in served:
        member = members[name]
        if member.privileged:
            found.append(
                f"members.{name}: reads {list(member.privileged)}, known only after the event, but the student reads "
                "its output when it serves; take them out of its view, or give the student other inputs"
            )
        if member.net.name == RECORDED:
            found.append(
                f"members.{name}: only its scores of a log are left, but the student reads its output when it serves; "
                "name the run itself with `frozen`, or give the student other inputs"
            )
        for signal in member.inputs:
            if not isinstance(signal.signal if isinstance(signal, Live) else signal, SERVABLE):
                found.append(
                    f"members.{name}.inputs: {signal} cannot be computed when the student serves; a serving member "
                    "reads plain outputs such as member.logit or member.hidden[-1]"
                )
    return found


def _wrong_inputs(member: Member, spec: FeatureSpec) -> list[str]:
    """Inputs that a member cannot read; an input needs a value for every row, labelled or not."""
    found = []
    for signal in member.signals:
        place, parts = f"members.{member.name}.inputs", [*walk(signal)]
        if spec.scenario is None and any(isinstance(part, Scenario) for part in parts):
            found.append(f"{place}: the feature spec names no `scenario`")
        found += [
            f"{place}: {part} is not known for every row, so no member can read it; read a privileged column, or "
            "another member's output"
            for part in parts
            if isinstance(part, Column | Remembered)
        ]
    return found


def loop_through(name: str, members: Members) -> list[str] | None:
    """The circle of members reading each other that a member is in, if any."""
    paths = [[name]]
    while paths:
        path = paths.pop()
        for reader in sorted({m for signal in members[path[-1]].signals for m in signal.members}):
            if reader == name:
                return [*path, name]
            if reader not in path:
                paths.append([*path, reader])
    return None


def check_phases(phases: Sequence[Phase], members: Members, job: Job, spec: FeatureSpec) -> list[str]:
    """Problems with what phases train, and on which rows."""
    found = [
        f"{m.implied}: no term teaches it; add one in which it stands first, such as bce({m.implied}, label)"
        if m.implied
        else f"members.{m.name}: no term teaches it; add one, or remove the member"
        for m in members.values()
        if m.origin is None and m.net.learns and not any(m.name in trained_names(p.trained, members) for p in phases)
    ]
    for i, phase in enumerate(phases):
        for j, update in enumerate(phase.updates):
            place = f"phases.{i}.updates.{j}" if len(phase.updates) > 1 else f"phases.{i}"
            found += _wrong_parts(update, place, members)
            found += _wrong_terms(update, place, members)
            found += _wrong_rows(update, place, members, job)
            found += _wrong_candidates(update, place, members, job, phase.trained)
            found += _wrong_memories(update, place, job, spec)
        found += two_owners(phase, i, members)
        found += _moved_by_others(phase, i, members)
        found += _wrong_start(phase, i, members)
        found += _needs_validation(phase, i, members, job)
        if job.train.micro_batch is not None:
            found += [
                f"phases.{i}: {term.words!r} compares the rows of a batch with each other; remove train.micro_batch"
                for term in phase.terms
                if term.exempt
            ]
    if job.train.micro_batch is not None:
        found += [
            f"members.{name}.net: `norm: batch` compares the rows of a batch with each other; remove "
            "train.micro_batch, or take `norm: layer`"
            for name in in_batch(phases, members)
        ]
    return found


def in_batch(phases: Sequence[Phase], members: Members) -> list[str]:
    """The members that are trained on statistics of the rows that meet in a batch."""
    trained = {name for phase in phases for name in trained_names(phase.trained, members)}
    return [name for name, member in members.items() if name in trained and member.net.in_batch]


def trained_names(names: Iterable[str], members: Members) -> set[str]:
    """The members, plus the originals behind second names."""
    return {*names, *(same for name in names if (same := members[name].same) is not None)}


def _wrong_parts(update: Update, place: str, members: Members) -> list[str]:
    found = [
        f"{place}.train: {name!r} does not learn: it is {kind_of(members[name])}; take it out"
        for name in sorted(update.trained)
        if not members[name].trainable
    ]
    if not update.parts:
        found.append(f"{place}: teaches nobody who could move; name members that are trained")
    for term in update.terms:
        reach = behind(term.taught, members, live=True)
        if update.parts and not reach & update.trained:
            found.append(
                f"{place}: {term.words!r} teaches {sorted(term.taught)}, none of whom moves in this update; add them "
                "to `train`, or read them through live(...)"
            )
    return found


def _wrong_terms(update: Update, place: str, members: Members) -> list[str]:
    """Duplicate terms, one of which would be lost, and incompatible folds."""
    words = [term.words for term in update.terms]
    twice = sorted({word for word in words if words.count(word) > 1})
    found = [f"{place}: {word!r} is listed twice; multiply it by 2 instead" for word in twice]
    for term in update.terms:
        if len(folds := folds_of(behind(term.taught, members, live=True), members)) > 1:
            found.append(
                f"{place}: {term.words!r} teaches copies of {len(folds)} folds at once, which leaves them no row in "
                "common that they may learn from; write one term for each copy"
            )
    for part in (part for term in update.terms for part in walk(term) if isinstance(part, Unseen)):
        of = [{members[name].fold for name in signal.members} for signal in part.signals]
        if of != [{(k, len(of))} for k in range(len(of))]:
            found.append(
                f"{place}: {part} needs all copies of a member with `folds: true`, in their order; write for example "
                "out_of_fold(teacher[:].logit)"
            )
    return found


def folds_of(names: Iterable[str], members: Members) -> list[tuple[int, int]]:
    """The folds held out from these members."""
    return sorted({fold for name in names if members[name].trainable and (fold := members[name].fold) is not None})


def kind_of(member: Member) -> str:
    """Why a member does not learn, in words."""
    if member.follows is not None:
        return f"a copy that follows {member.follows!r}"
    if not member.net.learns:
        return "without parameters that gradients move"
    return "read from a file" if member.net.name == RECORDED else "frozen"


def behind(names: Iterable[str], members: Members, *, live: bool = False) -> set[str]:
    """The members and all whose outputs they read, even indirectly; with ``live`` only where gradients pass."""
    found, waiting = {*names}, [*names]
    while waiting:
        for read in members[waiting.pop()].signals:
            new = {*read.members} - found if flows(read) or not live else set()
            found |= new
            waiting += new
    return found


def _wrong_rows(update: Update, place: str, members: Members, job: Job) -> list[str]:
    """Members and terms that ask a feed of noise for columns or labels, of which it has none."""
    feed = job.feeds.get(update.feed)
    if feed is None or feed.noise is None:
        return []
    recorded = [n for n in sorted(update.members) if members[n].net.name == RECORDED]
    reading = [
        n for n in sorted(update.members) if (members[n].serving or members[n].privileged) and not members[n].embed
    ]
    found = [
        f"{place}: {name!r} reads columns, but the feed {update.feed!r} has none; give it `view: {{embed: ...}}` or "
        "`inputs`"
        for name in reading
    ]
    found += [f"{place}: {name!r} has no scores of the rows of the feed {update.feed!r}" for name in recorded]
    for term in update.terms:
        if any(isinstance(part, Column | Scenario) for part in walk(term)):
            found.append(f"{place}: {term.words!r} looks at a column, but the feed {update.feed!r} has none")
    return found


def _wrong_candidates(update: Update, place: str, members: Members, job: Job, moving: frozenset[str]) -> list[str]:
    """Requests for what candidates, users and items known in advance, lack: labels and anything privileged."""
    feed = job.feeds.get(update.feed)
    if feed is None or feed.candidates is None or job.graph is None:
        return []
    found = [
        f"{place}: {term.words!r} looks at a column, but candidates have none; {', '.join(MARKS)} tell what is known"
        for term in update.terms
        if any(isinstance(part, Column | Scenario) for part in walk(term))
    ]
    by = feed.candidates.ranked.by if feed.candidates.ranked is not None else ""
    for name in sorted(update.members | ({by} & members.keys())):
        if members[name].net.name == RECORDED:
            found.append(f"{place}: {name!r} has no scores of candidates, only of rows of its log")
        found += _undescribed(place, members[name], job)
    if by and (by not in members or by in moving or not members[by].net.ranks):
        found.append(
            f"feeds.{update.feed}.candidates.ranked.by: {by!r} is not a single member, moves in the phase of {place}, "
            "or has no `scores`; name one that is trained before and ranks"
        )
    return found


def check_rankings(members: Members, job: Job) -> list[str]:
    """Problems with members that work on the job's graph."""
    found = []
    for name, member in members.items():
        if member.net.whole:
            place = f"members.{name}"
            if job.graph is None:
                found.append(f"{place}.net: works on a graph; name users and items in the job's `graph`")
            elif [job.graph.user, job.graph.item] != [member.net.options.get(side) for side in ("user", "item")]:
                found.append(f"{place}.net: user and item must be those of the job's graph")
            if member.serve:
                found.append(f"{place}.serve: answers from the vectors of all nodes at once; let a student serve")
            if member.share.tables is not None or member.trunk or member.distort is not None:
                found.append(f"{place}: works on whole tables, so it has its own, and neither a trunk nor `distort`")
        if job.ranking is not None and member.net.ranks:
            found += _undescribed(f"members.{name}.view", member, job)
        elif job.ranking is not None and member.serve:
            found.append(f"members.{name}.net: {member.net.name!r} has one score a row; lists need a net with `scores`")
    return found


def _undescribed(place: str, member: Member, job: Job) -> list[str]:
    """Columns of a member that are not known when lists are made, because they are neither a user's nor an item's."""
    sides = job.graph.sides.values() if job.graph is not None else ()
    described = {column for columns in sides for column in columns}
    other = [column for column in member.columns if column not in described]
    if not other:
        return []
    return [
        f"{place}: {member.name!r} reads {other}, which describe neither users nor items of the job's graph; name them "
        "there, or take them out of its view"
    ]


def _wrong_memories(update: Update, place: str, job: Job, spec: FeatureSpec) -> list[str]:
    """Memories on feeds where row ids do not recur, or where those of several logs could be confused."""
    words = ", ".join(repr(term.words) for term in update.terms if term.memories)
    feed = job.feeds.get(update.feed)
    if words and feed is not None and feed.noise is not None:
        return [f"{place}: {words}: rows are remembered, but none of the feed {update.feed!r} comes back"]
    if words and not spec.row_id and any(each.log for each in job.feeds.values()):
        return [
            f"{place}: {words}: rows are remembered by their ids, but without `row_id` in the feature spec those of "
            "each log are only counted; name the columns that identify a row"
        ]
    return []


def table_owners(member: Member, members: Members) -> set[str]:
    """The members whose tables a member looks its columns up in."""
    if member.same is not None:
        return table_owners(members[member.same], members)
    return {home_of(column, member, members) for column in member.columns}


def two_owners(phase: Phase, index: int, members: Members) -> list[str]:
    """Tables moved by two updates on one feed; a fused optimizer steps inside backward, so only one may own them."""
    found = []
    feeds = [update.feed for update in phase.updates]
    owned = [{o for m in _moving_tables(update, members) for o in table_owners(m, members)} for update in phase.updates]
    for j, first in enumerate(owned):
        for k, second in enumerate(owned[j + 1 :], j + 1):
            found += [
                f"phases.{index}: updates {j} and {k} both move the tables of {owner!r}; tables move once in a step, "
                "so put the terms into one update, or train a part without `tables` in one of them"
                for owner in sorted(first & second if feeds[j] == feeds[k] else ())
            ]
    return found


def _moving_tables(update: Update, members: Members) -> list[Member]:
    """The members whose tables an update moves."""
    return [members[n] for n in sorted(update.trained) if update.owns_tables(n) and not members[n].embed]


def _moved_by_others(phase: Phase, index: int, members: Members) -> list[str]:
    """Parameters a phase trains although one of its frozen members uses them."""
    found = []
    moving = trained_names(phase.trained, members)
    moved = {m.name: m for update in phase.updates for m in _moving_tables(update, members)}
    tables = {name: table_owners(member, members) for name, member in moved.items()}
    for frozen in sorted(phase.members - moving):
        if members[frozen].same in moving:
            continue  # a second name of what moves: it is meant to move
        for trained in sorted(phase.trained):
            shared = []
            if members[frozen].embed is None and table_owners(members[frozen], members) & tables.get(trained, set()):
                shared.append("tables")
            if _owner_of_trunk(members[frozen]) == _owner_of_trunk(members[trained]):
                shared.append("trunk")
            if _shares_modules(members[frozen], members[trained]):
                shared.append("modules")
            found += [
                f"phases.{index}: trains {trained!r}, whose {what} the frozen {frozen!r} uses as well, so it would "
                f"change; give {frozen!r} {what} of its own, or add a term that teaches it"
                for what in shared
            ]
    return found


def _owner_of_trunk(member: Member) -> str:
    return member.share.trunk or member.name


def _shares_modules(first: Member, second: Member) -> bool:
    """Whether two members have a module in common: one borrows it from the other, or both from a third."""
    ours, theirs = ({*member.share.borrowed.values()} for member in (first, second))
    return bool(ours & theirs) or second.name in dict(ours) or first.name in dict(theirs)


def _wrong_start(phase: Phase, index: int, members: Members) -> list[str]:
    found = [
        f"phases.{index}.restart: {name!r} is {kind_of(members[name])}; only members that are trained begin anew"
        for name in phase.restart
        if members[name].origin is not None
    ]
    for to, of in phase.carry:
        if members[to].origin is not None:
            found.append(f"phases.{index}.carry.{to}: {to!r} is {kind_of(members[to])}; carry into a trained member")
        if members[of].net != members[to].net or members[of].trunk != members[to].trunk:
            found.append(f"phases.{index}.carry.{to}: {to!r} and {of!r} are built differently; give both the same net")
    return found


def _needs_validation(phase: Phase, index: int, members: Members, job: Job) -> list[str]:
    """Decisions that need validation rows in a job whose refit trains on them."""
    if not job.train.refit:
        return []
    found = [
        f"phases.{index}: a weight follows {m.key}, which has no value while validation rows are trained on"
        for m in phase.metrics
    ]
    found += [
        f"phases.{index}: {name!r} is chosen on validation rows, which are trained on"
        for name in sorted(phase.members)
        if members[name].net.chosen
    ]
    moving = trained_names(phase.trained, members)
    best = [m.name for m in members.values() if isinstance(m.origin, Best) and m.follows in moving]
    found += [f"phases.{index}: {name!r} follows the best evaluation, of which there is none" for name in best]
    return [f"{problem}; remove train.refit" for problem in dict.fromkeys(found)]
