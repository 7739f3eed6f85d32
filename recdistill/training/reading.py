"""Which rows and columns a training reads: its logs, readers of them, and the feeds of its updates."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from recdistill.data.candidates import CandidateFeed
from recdistill.data.encoded import EncodedLog
from recdistill.data.nodes import Nodes
from recdistill.data.permute import permute_privileged
from recdistill.data.reader import Reader, Selection
from recdistill.data.thinning import Sample, Shard, Thinning
from recdistill.distill.compile import Plan
from recdistill.distill.layout import is_embedded, lay_out
from recdistill.distill.member import Member
from recdistill.distill.signal import Scenario, walk
from recdistill.errors import LogError
from recdistill.spec.phases import LOG, FeedSpec
from recdistill.spec.train import TrainSpec
from recdistill.training.feeds import Feed, LogFeed, MixFeed, NoiseFeed
from recdistill.training.processes import rank


@dataclass(frozen=True)
class Logs:
    """The encoded log of a training, and the other logs that its feeds read."""

    log: EncodedLog
    feeds: Mapping[str, EncodedLog] = field(default_factory=dict)


@dataclass(frozen=True)
class Data:
    """The encoded logs of a run: to tune on, and for the final parameters (the same ones without ``refit``)."""

    tuning: Logs
    final: Logs

    @classmethod
    def of(cls, log: EncodedLog) -> "Data":
        """One log for everything."""
        return cls(Logs(log), Logs(log))


@dataclass(frozen=True)
class Training:
    """One training of a run.

    Attributes:
        plan: members and phases.
        settings: the job's training settings.
        data: the encoded logs.
        seed: of everything that is drawn.
        shuffle_privileged: whether privileged columns are permuted over the rows.
        since: when the run began, in seconds since 1970: what others had left in shared folders by then is not of it.
    """

    plan: Plan
    settings: TrainSpec
    data: Data
    seed: int
    shuffle_privileged: bool = False
    since: float = field(default_factory=time.time)


def selection(plan: Plan, log: EncodedLog, feed: str | None = None, *, lists: bool = False) -> Selection:
    """The columns that some member reads, embedded ones in the order of lookup; or only those of a feed's updates."""
    updates = [u for phase in plan.phases for u in phase.updates if feed in (None, u.feed)]
    names = {name for update in updates for name in update.members}
    members = [member for member in plan.members if feed is None or member.name in names]
    terms = [term for update in updates for term in update.terms]
    looked_at = [part for thing in (*terms, *(s for m in members for s in m.signals)) for part in walk(thing)]
    scenarios = plan.scenario and any(isinstance(part, Scenario) for part in looked_at)
    listed = lists or any(term.scope == "list" for term in terms)
    serving, privileged = (_read_by(members, plan, log, audience) for audience in ("serving", "privileged"))
    return Selection(serving, privileged, plan.columns, listed, scenarios)


def _read_by(members: Sequence[Member], plan: Plan, log: EncodedLog, audience: str) -> tuple[str, ...]:
    """All columns of an audience, in the order in which the banks look them up, so that a batch needs no reordering."""
    wanted = dict.fromkeys(column for member in members for column in getattr(member, audience))
    layout = lay_out(plan.members, log.spec, log.fitted.tables)
    looked_up = [f.column for bank in layout.banks.values() for f in bank.features if f.column in wanted]
    return tuple(dict.fromkeys([*looked_up, *(c for c in wanted if not is_embedded(log.spec, c))]))


def nodes_of(plan: Plan, log: EncodedLog, splits: tuple[str, ...]) -> Nodes | None:
    """The users and items of some splits, if the job speaks of them."""
    return None if plan.graph is None else Nodes.of(log, plan.graph, selection(plan, log).serving, splits)


def feeds_of(training: Training, logs: Logs, train: Reader, nodes: Nodes | None, folder: Path) -> dict[str, Feed]:
    """The feeds besides the log; a mixture reads of all its parts what its own updates need."""
    plan = training.plan

    def of_log(name: str, reads_for: str) -> LogFeed:
        lists = train.whole_lists and LOG in plan.feeds[reads_for].mix
        chosen = selection(plan, train.log, reads_for, lists=lists)
        if name == LOG:
            return LogFeed(replace(train, selection=chosen))
        if (mine := _part_of(train, plan.feeds[name], name)) is not None:
            return LogFeed(replace(train, selection=chosen, thinning=replace(train.thinning, shard=mine)))
        log = logs.feeds[name]
        _refuse_lacking(plan, log, chosen, name, reads_for)
        # all rows of a log from which nothing is learned form the test split
        post_event = _permuted(training, log, ("test",), folder)
        return LogFeed(Reader(log, ("test",), chosen, post_event=post_event, forgetting=train.forgetting))

    feeds: dict[str, Feed] = {}
    used = {update.feed for phase in plan.phases for update in phase.updates}
    for name, feed in ((name, feed) for name, feed in plan.feeds.items() if name in used):
        if feed.noise is not None:
            feeds[name] = NoiseFeed(feed.noise)
        elif feed.candidates is not None and nodes is not None:
            chosen = selection(plan, train.log, name)
            feeds[name] = CandidateFeed(nodes.graph, nodes.catalogue, feed.candidates, chosen.serving, chosen.labels)
        elif feed.mix:
            feeds[name] = MixFeed(tuple(of_log(part, name) for part in feed.mix), tuple(feed.mix.values()))
        else:
            feeds[name] = of_log(name, name)
    return feeds


def _part_of(train: Reader, feed: FeedSpec, name: str) -> Shard | Sample | None:
    """The training rows that a feed consists of, if it reads the job's own log.

    Raises:
        LogError: there are not as many.
    """
    if feed.shard is not None:
        return Shard(*feed.shard, by_group=feed.by == "group")
    if feed.sample is None:
        return None
    if feed.sample > train.rows():
        raise LogError(f"feeds.{name}.sample: asks for {feed.sample} of {train.rows()} training rows; ask for fewer")
    return Sample.of(train.row_ids(), feed.sample)


def _refuse_lacking(plan: Plan, log: EncodedLog, chosen: Selection, name: str, reads_for: str) -> None:
    """Raise unless another log holds what is read from it.

    Raises:
        LogError: it does not.
    """
    lacking = [column for column in chosen.privileged if column not in log.spec.post_event]
    readers = [
        member.name
        for member in plan.members
        if {*lacking} & {*member.privileged}
        and any(u.feed == reads_for and member.name in u.members for phase in plan.phases for u in phase.updates)
    ]
    roles = [("group", chosen.groups), ("scenario", chosen.scenarios)]
    lacking += [f"the spec's {role}" for role, read in roles if read and getattr(log.spec, role) is None]
    if lacking:
        who = f"{', '.join(readers)} read" if readers else "terms look at"
        raise LogError(
            f"feeds.{name}: {plan.feeds[name].log} lacks {', '.join(lacking)}, which {who} on the feed {reads_for!r}; "
            "add what is missing to that log, or give them another feed"
        )


def reader_of(plan: Plan, log: EncodedLog, splits: tuple[str, ...]) -> Reader:
    """All rows of some splits, with the columns that a plan needs."""
    return Reader(log, splits, selection(plan, log))


def reader_for(
    training: Training,
    log: EncodedLog,
    splits: tuple[str, ...],
    folder: Path,
    thinning: Thinning | None = None,
    *,
    lists: bool = False,
) -> Reader:
    """The rows of some splits, without what the training sets aside and with the columns that it permutes."""
    chosen = selection(training.plan, log, lists=lists)
    return Reader(log, splits, chosen, thinning or Thinning(), _permuted(training, log, splits, folder))


def _permuted(training: Training, log: EncodedLog, splits: tuple[str, ...], folder: Path) -> Path | None:
    """Where the privileged columns of a log lie that were permuted over its rows, if the training asks for it."""
    read = dict.fromkeys(column for member in training.plan.members for column in member.privileged)
    privileged = tuple(column for column in read if column in log.spec.post_event)
    if not training.shuffle_privileged or not privileged:
        return None
    post_event = folder / f".shuffled-{rank()}" / log.fingerprint
    for split in splits:
        if not (post_event / split).exists():
            permute_privileged(log, split, privileged, seed=training.seed, out=post_event)
    return post_event
