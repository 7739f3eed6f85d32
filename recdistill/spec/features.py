"""What a log holds: one feature spec per log schema.

Columns under ``serving`` exist when a request is answered; columns under ``post_event`` happen afterwards (or are too
dear to compute online), and a job may use them as labels or as privileged inputs, never as inputs of a serving member.
Everything here is checked before any data is read, and all problems of a file are reported together (`load.py`).
"""

from datetime import date, datetime
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from recdistill.spec.strict import Strict

Bound = int | float | str | date | datetime  # of a range of the split column


class Column(Strict):
    """What every typed column has: the raw column that it reads (default: its own name)."""

    column: str | None = None


class Vocabularied(Column):
    """A column whose values become rows of an embedding table.

    Attributes:
        min_count: values seen less often in the training rows fall into the unknown row.
        hash: number of hash buckets; the table then needs no vocabulary and unseen values share rows.
        vocabulary: another column whose vocabulary, and so whose table, this column uses.
    """

    min_count: int = Field(1, ge=1)
    hash: int | None = Field(None, ge=2)
    vocabulary: str | None = None


class Categorical(Vocabularied):
    """A value of a closed set, such as a country."""

    type: Literal["categorical"]


class Id(Vocabularied):
    """An entity such as a user or an item; values seen once in training fall into the unknown row by default."""

    type: Literal["id"]
    min_count: int = Field(2, ge=1)


class Bag(Vocabularied):
    """An unordered list of values per row (or a string with separators), pooled into one vector.

    Attributes:
        separator: cuts a string column into values.
        max_length: keeps the last values of longer lists.
        pool: how the values' vectors become one.
    """

    type: Literal["list"]
    separator: str | None = Field(None, min_length=1)
    max_length: int | None = Field(None, ge=1)
    pool: Literal["mean", "sum"] = "mean"


class Numeric(Column):
    """A number: clipped, then ``sign(x) log(1 + |x|)``, then scaled; or cut into embedded quantile ``buckets``."""

    type: Literal["numeric"]
    clip: tuple[float, float] | None = None
    log: bool = False
    scale: Literal["standard", "minmax", "none"] = "standard"
    buckets: int | None = Field(None, ge=2)

    @model_validator(mode="after")
    def _consistent(self) -> "Numeric":
        if self.clip is not None and not self.clip[0] < self.clip[1]:
            raise ValueError(f"clip needs low < high, found {list(self.clip)}; swap or correct the bounds")
        if self.buckets is not None and (self.log or self.scale != "standard" or self.clip is not None):
            raise ValueError("buckets cut the raw values, so clip, log and scale have no effect; remove them")
        return self


class Binary(Column):
    """0, 1 or null (not known yet). The only type that can be a label."""

    type: Literal["binary"]


def _expand(value: Any) -> Any:
    return {"type": value} if isinstance(value, str) else value


AnyColumn = Annotated[Categorical | Id | Bag | Numeric | Binary, Field(discriminator="type"), BeforeValidator(_expand)]


def _kind_of_bound(bound: Bound) -> str:
    return "number" if isinstance(bound, int | float) else type(bound).__name__


class SplitByColumn(Strict):
    """Inclusive ranges of one raw column, for example a date. Rows in no range are left out, and counted."""

    column: str
    train: tuple[Bound, Bound]
    valid: tuple[Bound, Bound]
    test: tuple[Bound, Bound]

    @model_validator(mode="after")
    def _disjoint(self) -> "SplitByColumn":
        ranges = {name: getattr(self, name) for name in ("train", "valid", "test")}
        kinds = {_kind_of_bound(bound) for low_high in ranges.values() for bound in low_high}
        if len(kinds) > 1:
            raise ValueError(f"the bounds are of several types ({', '.join(sorted(kinds))}); write all six alike")
        for name, (low, high) in ranges.items():
            if low > high:
                raise ValueError(f"{name}: [{low}, {high}] is empty; give the earlier bound first")
        names = list(ranges)
        for a, b in ((0, 1), (0, 2), (1, 2)):
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
        negative_keep_rate: the share of negative rows that was kept when the log was written; corrected at export.
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

    def source(self, name: str) -> str:
        """The raw column that a typed column reads."""
        return self.columns[name].column or name

    def table(self, name: str) -> str:
        """The embedding table, that is the vocabulary, of a categorical, id, list or bucketed column."""
        column = self.columns[name]
        return (column.vocabulary or name) if isinstance(column, Vocabularied) else name

    def problems(self) -> list[str]:
        """What is wrong across fields, one sentence each; empty if nothing is."""
        return [*_clashes(self), *_vocabularies(self), *_split_needs(self)]


def _clashes(spec: FeatureSpec) -> list[str]:
    both = sorted(spec.serving.keys() & spec.post_event.keys())
    found = [f"{name}: declared under serving and under post_event; keep it where it belongs" for name in both]
    after = {spec.source(name): name for name in spec.post_event}
    for name in spec.serving:
        raw = spec.source(name)
        if raw in after and name not in both:
            found.append(
                f"serving.{name}: reads the raw column {raw!r}, which post_event.{after[raw]} declares to be known "
                "only after the event; remove one of the two"
            )
    sources = {spec.source(name): name for name in spec.columns}
    for name in sorted(spec.reference):
        if name in spec.columns or name in sources:
            found.append(f"reference: {name!r} is also a typed column; a reference score is only reported")
    return [*found, *_reserved(spec)]


def _reserved(spec: FeatureSpec) -> list[str]:
    """Columns named like those that encoding adds: the row id to every view, the roles to the raw labels."""
    roles = [role for role in ("weight", "group", "time", "scenario") if getattr(spec, role) is not None]
    taken = ["row_id"] if "row_id" in spec.columns else []
    taken += [role for role in roles if isinstance(spec.post_event.get(role), Binary)]
    return [
        f"{name}: encoding adds a column of this name; call yours something else and add `column: {spec.source(name)}`"
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
