"""What a log holds: one feature spec per log schema.

Columns under ``serving`` exist when a request is answered; columns under ``post_event`` happen afterwards (or are too
expensive to compute online), and a job may use them as labels or as privileged inputs, never in a serving member.
Everything here is checked before any data is read, and all problems of a file are reported together (`load.py`).
"""

import itertools
from datetime import date, datetime
from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from recdistill.spec.columns import AnyColumn, Binary, Cross, History, Sequence, Vocabularied
from recdistill.spec.strict import Strict

Bound = int | float | str | date | datetime  # of a range of the split column


def _kind_of_bound(bound: Bound) -> str:
    if isinstance(bound, datetime) and bound.tzinfo is not None:
        return "datetime with an offset"
    return "number" if isinstance(bound, int | float) else type(bound).__name__


def _in_order(bounds: dict[str, tuple[Any, Any]]) -> dict[str, tuple[Any, Any]]:
    """Ranges that compare as they are meant: texts that are times with an offset, as JSON writes them, as times."""
    try:
        times = {name: tuple(datetime.fromisoformat(bound) for bound in pair) for name, pair in bounds.items()}
    except (TypeError, ValueError):
        return bounds
    aware = all(time.tzinfo is not None for pair in times.values() for time in pair)
    return {name: (low, high) for name, (low, high) in times.items()} if aware else bounds


class SplitByColumn(Strict):
    """Inclusive ranges of one raw column, for example a date. Rows in no range are left out, and counted.

    A log that comes without validation rows gives a share of its training range for them, ``valid: 0.1``, drawn by the
    hash of the row.
    """

    column: str
    train: tuple[Bound, Bound]
    valid: tuple[Bound, Bound] | Annotated[float, Field(gt=0, lt=1)]
    test: tuple[Bound, Bound]

    @property
    def ranges(self) -> dict[str, tuple[Any, Any]]:
        """The range of each split that has one."""
        named = {"train": self.train, "valid": self.valid, "test": self.test}
        return {name: bounds for name, bounds in named.items() if isinstance(bounds, tuple)}

    @model_validator(mode="after")
    def _disjoint(self) -> "SplitByColumn":
        ranges = self.ranges
        kinds = {_kind_of_bound(bound) for low_high in ranges.values() for bound in low_high}
        if len(kinds) > 1:
            raise ValueError(f"the bounds are of several types ({', '.join(sorted(kinds))}); write them alike")
        ranges = _in_order(ranges)
        for name, (low, high) in ranges.items():
            if low > high:
                raise ValueError(f"{name}: [{low}, {high}] is empty; give the earlier bound first")
        names = list(ranges)
        for a, b in itertools.combinations(range(len(names)), 2):
            (low_a, high_a), (low_b, high_b) = ranges[names[a]], ranges[names[b]]
            if low_a <= high_b and low_b <= high_a:
                raise ValueError(f"{names[a]} and {names[b]} overlap; a row may belong to one split only")
        return self


class Shares(Strict):
    """Which share of the rows each of the two held-out splits receives."""

    valid: float = Field(0.1, gt=0, lt=1)
    test: float = Field(0.1, gt=0, lt=1)

    @model_validator(mode="after")
    def _leaves_rows_to_train(self) -> "Shares":
        if self.valid + self.test >= 1:
            raise ValueError(f"valid {self.valid} + test {self.test} leave nothing to train on; keep their sum under 1")
        return self


class SplitByTime(Strict):
    """The latest rows are the test split, those before them the validation split. Rows of one instant stay together."""

    time: Shares


class HashShares(Shares):
    """Shares drawn by the hash of a key, so that all rows of one key (a user, say) fall into one split."""

    key: str | None = None


class SplitByHash(Strict):
    """A split without time: for logs whose rows are exchangeable."""

    hash: HashShares


def _kind_of_split(value: Any) -> str | None:
    keys = value if isinstance(value, dict) else getattr(type(value), "model_fields", {})
    return next((f"by {kind}" for kind in ("column", "time", "hash") if kind in keys), None)


Split = Annotated[
    Annotated[SplitByColumn, Tag("by column")]
    | Annotated[SplitByTime, Tag("by time")]
    | Annotated[SplitByHash, Tag("by hash")],
    Discriminator(
        _kind_of_split, custom_error_type="recdistill", custom_error_message="a split names `column`, `time` or `hash`"
    ),
]


class Join(Strict):
    """A side table, joined from the left: ``on`` its key, without columns that match ``drop`` (``*`` is a wildcard)."""

    on: str | list[str]
    drop: list[str] = []
    keep: list[str] | None = None

    @property
    def keys(self) -> list[str]:
        """The key columns, always as a list."""
        return [self.on] if isinstance(self.on, str) else self.on


def _key_columns(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class FeatureSpec(Strict):
    """The contract between a log and everything that reads it.

    Attributes:
        row_id: raw columns that identify a row; hashed to 64 bits, duplicates refused. Without it the row's number in
            the log is its identity, which holds only as long as the log is not reordered.
        time: raw column that orders rows; with it the default split is by time.
        group: raw column for grouped metrics, usually the user or the request.
        weight: raw column with row weights for losses and metrics.
        scenario: raw column that tells traffic sources apart.
        split: how rows fall into ``train``, ``valid`` and ``test``.
        join: side tables by path.
        serving: columns that a serving member may read.
        post_event: columns that only a label, a teacher or nobody may read.
        reference: raw score columns that are reported beside the members, for example a production score.
        negative_keep_rate: the share of the rows with a main label of 0 that was kept when the log was written;
            corrected at export.
    """

    row_id: Annotated[list[str], BeforeValidator(_key_columns)] = []
    time: str | None = None
    group: str | None = None
    weight: str | None = None
    scenario: str | None = None
    split: Split | None = None
    join: dict[str, Join] = {}
    serving: dict[str, AnyColumn] = Field(min_length=1)
    post_event: dict[str, AnyColumn] = {}
    reference: list[str] = []
    negative_keep_rate: float = Field(1.0, gt=0, le=1)

    @property
    def columns(self) -> dict[str, AnyColumn]:
        """All typed columns, serving first."""
        return {**self.serving, **self.post_event}

    def sources(self, name: str) -> list[str]:
        """The raw columns that a typed column reads, its own first."""
        column = self.columns[name]
        gaps = isinstance(column, Sequence) and column.times_of(name) is not None and self.time is not None
        return [*column.sources(name), *([str(self.time)] if gaps else [])]

    def given(self, name: str) -> list[str]:
        """Those of them that a row itself must hold; a history column also reads others, of past rows alone."""
        return self.columns[name].given(name)

    def source(self, name: str) -> str:
        """The first raw column that a typed column reads."""
        return self.sources(name)[0]

    @property
    def clock(self) -> str | None:
        """The time column, if a row's sequences cannot be made without it."""
        timed = (
            isinstance(column, Sequence) and (column.past is not None or column.times_of(name) is not None)
            for name, column in self.columns.items()
        )
        return self.time if any(timed) else None

    def table(self, name: str) -> str:
        """The embedding table, that is the vocabulary, of a categorical, id, list or bucketed column."""
        column = self.columns[name]
        return (column.vocabulary or name) if isinstance(column, Vocabularied) else name

    def problems(self) -> list[str]:
        """What is wrong across fields, one sentence each; empty if nothing is."""
        return [*_clashes(self), *_histories(self), *_vocabularies(self), *_split_needs(self), *_time_needs(self)]


def _clashes(spec: FeatureSpec) -> list[str]:
    both = sorted(spec.serving.keys() & spec.post_event.keys())
    found = [f"{name}: declared under serving and under post_event; keep it where it belongs" for name in both]
    after = _known_after(spec)
    for name in spec.serving:
        for raw in spec.given(name):
            if raw in after and name not in both:
                found.append(
                    f"serving.{name}: reads the raw column {raw!r}, which post_event.{after[raw]} declares to be known "
                    "only after the event; remove one of the two"
                )
    sources = {raw for name in spec.columns for raw in spec.sources(name)}
    for name in sorted(spec.reference):
        if name in spec.columns or name in sources:
            found.append(f"reference: {name!r} is also a typed column; a reference score is only reported")
    return [*found, *_reserved(spec)]


def _known_after(spec: FeatureSpec) -> dict[str, str]:
    """Raw columns that are known only after the event, and the post-event columns that say so.

    History columns say nothing: they stand there because they are expensive to compute, or by the author's choice.
    """
    columns = {name: column for name, column in spec.post_event.items() if not isinstance(column, History)}
    return {raw: name for name, column in columns.items() for raw in column.sources(name)}


def _histories(spec: FeatureSpec) -> list[str]:
    found = []
    roles = [*spec.row_id, spec.time, spec.group, spec.weight, spec.scenario]
    raw = {*roles, *(source for name in spec.columns for source in spec.sources(name))}
    after = _known_after(spec)
    for name, column in spec.columns.items():
        if not isinstance(column, History):
            continue
        place = f"{'serving' if name in spec.serving else 'post_event'}.{name}"
        if spec.time is None:
            found.append(f"{place}: a history needs to know which rows are past; add `time: <column>`")
        if name in raw:
            found.append(
                f"{place}: {name!r} is a raw column that the spec reads, but under this name a caller may pass a "
                "fresher value; call the history something else"
            )
        if column.session in after:
            found.append(
                f"{place}.session: {column.session!r} is known only after the event (post_event."
                f"{after[str(column.session)]}), so that a row would tell its own outcome; name another column"
            )
    return found


def _reserved(spec: FeatureSpec) -> list[str]:
    """Columns named like those that encoding adds: the row id to every view, the roles to the raw labels."""
    roles = [role for role in ("weight", "group", "time", "scenario") if getattr(spec, role) is not None]
    taken = ["row_id"] if "row_id" in spec.columns else []
    taken += [role for role in roles if isinstance(spec.post_event.get(role), Binary)]
    made = {name for name in taken if isinstance(spec.columns[name], Cross | History)}  # they have no `column`
    return [
        f"{name}: encoding adds a column of this name; call yours something else"
        + ("" if name in made else f" and add `column: {spec.source(name)}`")
        for name in taken
    ]


def _vocabularies(spec: FeatureSpec) -> list[str]:
    found = []
    for name, column in spec.columns.items():
        if not isinstance(column, Vocabularied) or column.vocabulary is None:
            continue
        place = f"{'serving' if name in spec.serving else 'post_event'}.{name}.vocabulary"
        owner = spec.columns.get(column.vocabulary)
        if not isinstance(owner, Vocabularied):
            found.append(f"{place}: {column.vocabulary!r} is not an id, categorical or list column; name one that is")
        elif owner.vocabulary is not None:
            found.append(
                f"{place}: {column.vocabulary!r} borrows its own vocabulary from {owner.vocabulary!r}; name that"
            )
        elif name in spec.serving and column.vocabulary in spec.post_event:
            found.append(f"{place}: {column.vocabulary!r} is post-event; a serving column cannot read its vocabulary")
        elif column.hash is not None:
            found.append(
                f"{place}: hash is decided by the owner of the vocabulary, {column.vocabulary!r}; remove it here"
            )
    return found


def _split_needs(spec: FeatureSpec) -> list[str]:
    if isinstance(spec.split, SplitByTime) and spec.time is None:
        return ["split.time: needs a time column; add `time: <column>` or split by column or hash"]
    return []


def _time_needs(spec: FeatureSpec) -> list[str]:
    found = []
    for name, column in spec.columns.items():
        if not isinstance(column, Sequence) or spec.time is not None:
            continue
        if column.past is not None:
            found.append(f"{name}.past: a sequence needs to know which rows are past; add `time: <column>`")
        elif column.times is not None:
            found.append(f"{name}.times: gaps are counted from the row's time; add `time: <column>`, or remove `times`")
    return found
