"""The types of columns, as a feature spec declares them."""

import math
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, available_timezones

from pydantic import BeforeValidator, Field, field_validator, model_validator

from recdistill.spec.strict import OneOrMany, Strict, nearest


class Column(Strict):
    """What every typed column has: the raw column that it reads (default: its own name)."""

    column: str | None = None

    @property
    def further(self) -> list[str]:
        """Raw columns that it reads besides."""
        return []

    def sources(self, name: str) -> list[str]:
        """The raw columns that it reads as the typed column ``name``, its own first."""
        return [self.column or name, *self.further]

    def given(self, name: str) -> list[str]:
        """Those of them that tell something of the row itself: what a caller of the artefact hands over."""
        return self.sources(name)

    @property
    def embedded(self) -> bool:
        """Whether it is looked up in an embedding table; otherwise it is a number."""
        return False


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

    @property
    def embedded(self) -> bool:
        """Always."""
        return True


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
        weights: a raw column with a list of weights, one per value.
    """

    type: Literal["list"]
    separator: str | None = Field(None, min_length=1)
    max_length: int | None = Field(None, ge=1)
    pool: Literal["mean", "sum"] = "mean"
    weights: str | None = None

    @property
    def further(self) -> list[str]:
        """The weights."""
        return [] if self.weights is None else [self.weights]

    @property
    def weighted(self) -> bool:
        """Whether the values of a bag have weights."""
        return self.weights is not None


class Text(Column):
    """A text as a bag of its words, by hash.

    Words are the longest runs of ASCII letters, ASCII digits and characters beyond ASCII; everything else separates.

    Attributes:
        hash: number of hash buckets.
        ngrams: up to how many neighbouring words are hashed together, besides each word by itself.
        max_length: keeps the first words of longer texts.
        lower: whether A to Z count as a to z; letters beyond ASCII stay as they are.
        idf: whether rare words weigh more, as the training rows show it.
        pool: how the words' vectors become one.
    """

    type: Literal["text"]
    hash: int = Field(65_536, ge=2)
    ngrams: int = Field(1, ge=1, le=5)
    max_length: int | None = Field(None, ge=1)
    lower: bool = True
    idf: bool = False
    pool: Literal["mean", "sum"] = "mean"

    @property
    def embedded(self) -> bool:
        """Always."""
        return True

    @property
    def weighted(self) -> bool:
        """Whether the words have weights."""
        return self.idf


class Cross(Column):
    """The values of several raw columns taken together, by hash; order matters."""

    type: Literal["cross"]
    of: list[str] = Field(min_length=2)
    hash: int = Field(ge=2)

    @property
    def embedded(self) -> bool:
        """Always."""
        return True

    def sources(self, name: str) -> list[str]:  # noqa: ARG002
        """The raw columns that are crossed."""
        return self.of

    @model_validator(mode="after")
    def _consistent(self) -> "Cross":
        if self.column is not None:
            raise ValueError(f"a cross reads the raw columns in `of`, but `column` names {self.column!r}; remove it")
        if twice := sorted({raw for raw in self.of if self.of.count(raw) > 1}):
            raise ValueError(f"`of` names {twice[0]!r} twice; once tells all that it knows")
        return self


class DatePart(Column):
    """A part of a point in time, as clocks and calendars of a time zone show it: hours from 0, Mondays are 0.

    Attributes:
        part: which part.
        unit: of a raw column of integers, counted from 1970 in UTC; columns of times bring their own.
        zone: a name of the time zone database. Raw times without a zone are in UTC.
    """

    type: Literal["date_part"]
    part: Literal["hour", "weekday", "day", "month", "hour_of_week"]
    unit: Literal["s", "ms", "us"] = "ms"
    zone: str = "UTC"

    @property
    def embedded(self) -> bool:
        """Always."""
        return True

    @field_validator("zone")
    @classmethod
    def _known_zone(cls, zone: str) -> str:
        try:
            ZoneInfo(zone)
        except (LookupError, ValueError, OSError):
            raise ValueError(f"{zone!r} is no time zone; {_nearest_zone(zone)}") from None
        return zone


def _nearest_zone(zone: str) -> str:
    hint = nearest(zone, sorted(available_timezones()))
    return hint if hint.startswith("did you mean") else "give a name such as Asia/Shanghai"


class Missing(Column):
    """1 where the raw column is missing, otherwise 0; a list is missing if it holds no value."""

    type: Literal["missing"]


class Past(Strict):
    """Which rows of the log make a sequence: those before the row, at strictly smaller times, that share its keys.

    Attributes:
        keys: raw columns, usually the user.
        where: raw columns and the value (or values) that a past row must have, for example ``{is_click: 1}``.
        gaps: whether their times are a second channel.
    """

    keys: OneOrMany = Field(min_length=1)
    where: dict[str, Any] = {}
    gaps: bool = False


class Sequence(Vocabularied):
    """An ordered list of values per row, oldest first; every member says how it pools the vectors.

    Attributes:
        past: builds the lists from the log itself, of the values that ``column`` has in past rows. A caller of the
            artefact hands the list over under the name of the typed column, its times as ``name/times``.
        separator: cuts a string column into values.
        max_length: how many values are kept.
        side: which ones: the ``last`` (most recent) or the ``first``.
        times: a raw column with a list of times, one per value, in the unit of the spec's ``time``; the gap between the
            row and each value then becomes a second channel, by powers of two.
    """

    type: Literal["sequence"]
    separator: str | None = Field(None, min_length=1)
    max_length: int = Field(50, ge=1)
    side: Literal["last", "first"] = "last"
    times: str | None = None
    past: Past | None = None

    def times_of(self, name: str) -> str | None:
        """The raw column of the times, if time gaps are a channel."""
        if self.past is None:
            return self.times
        return f"{name}/times" if self.past.gaps else None

    def sources(self, name: str) -> list[str]:
        """The list and the times."""
        times = self.times_of(name)
        return [self.column or name if self.past is None else name, *([] if times is None else [times])]

    @model_validator(mode="after")
    def _consistent(self) -> "Sequence":
        if self.past is not None and (self.separator is not None or self.times is not None):
            raise ValueError("`past` makes the lists, so there is nothing to cut and no `times` to read; remove them")
        return self


class Numeric(Column):
    """A number: clipped, then ``sign(x) log(1 + |x|)``, then scaled; or cut into embedded buckets.

    Attributes:
        clip: the smallest and the largest value.
        log: whether to compress.
        scale: how to scale.
        buckets: number of quantiles of the training values to cut at, or
        edges: where to cut; a value on an edge lies above it.
    """

    type: Literal["numeric"]
    clip: tuple[float, float] | None = None
    log: bool = False
    scale: Literal["standard", "minmax", "none"] = "standard"
    buckets: int | None = Field(None, ge=2)
    edges: list[float] | None = Field(None, min_length=1)

    @property
    def embedded(self) -> bool:
        """If it is cut."""
        return self.buckets is not None or self.edges is not None

    @model_validator(mode="after")
    def _consistent(self) -> "Numeric":
        if self.clip is not None and not self.clip[0] < self.clip[1]:
            raise ValueError(f"clip needs low < high, found {list(self.clip)}; swap or correct the bounds")
        if self.embedded and (self.log or self.scale != "standard" or self.clip is not None):
            what = "edges" if self.buckets is None else "buckets"
            raise ValueError(f"{what} cut the raw values, so clip, log and scale have no effect; remove them")
        if self.edges is None:
            return self
        if self.buckets is not None:
            raise ValueError("buckets are cut at quantiles, edges where you say; keep one of the two")
        pairs = zip(self.edges, [*self.edges[1:], math.inf], strict=True)
        if not math.isfinite(self.edges[0]) or not all(low < high for low, high in pairs):
            raise ValueError(f"edges must be finite and rise strictly, found {self.edges}; sort them, each one once")
        return self


class History(Column):
    """A number from past rows of the log that share the row's keys: how many there were, or how they turned out.

    Attributes:
        keys: raw columns; rows that agree in all of them share a history.
        of: a raw column of numbers, usually a label; only rows count in which it is known.
        value: ``count`` of past rows (with ``of`` its sum), or ``rate``, the mean of ``of``; a rate by default if
            ``of`` is given.
        prior: how many rows of average outcome every rate starts from (10 by default).
        half_life: after which a row counts half, in the unit of the spec's ``time`` (days for dates, seconds for
            dates with a time of day).
        session: a raw column; rows of the same keys and session do not count.
        log: whether to compress; by default for counts.
        scale: how to scale.
    """

    type: Literal["history"]
    keys: OneOrMany = Field(min_length=1)
    of: str | None = None
    value: Literal["count", "rate"] | None = None
    prior: float | None = Field(None, gt=0, allow_inf_nan=False)
    half_life: float | None = Field(None, gt=0, allow_inf_nan=False)
    session: str | None = None
    log: bool | None = None
    scale: Literal["standard", "minmax", "none"] = "standard"

    @property
    def rate(self) -> bool:
        """Whether it is a rate; otherwise it is a count."""
        return self.value == "rate" if self.value is not None else self.of is not None

    @property
    def prior_rows(self) -> float:
        """How many rows of average outcome a rate starts from."""
        return 10.0 if self.prior is None else self.prior

    @property
    def numeric(self) -> Numeric:
        """How the number is compressed and scaled."""
        return Numeric(type="numeric", log=not self.rate if self.log is None else self.log, scale=self.scale)

    def sources(self, name: str) -> list[str]:  # noqa: ARG002
        """The keys, what is counted, and the session."""
        further = [raw for raw in (self.of, self.session) if raw is not None]
        return list(dict.fromkeys([*self.keys, *further]))

    def given(self, name: str) -> list[str]:  # noqa: ARG002
        """The keys: everything else is read from past rows alone."""
        return self.keys

    @model_validator(mode="after")
    def _consistent(self) -> "History":
        if self.column is not None:
            raise ValueError(f"a history reads `keys` and `of`, but `column` names {self.column!r}; remove it")
        if twice := sorted({raw for raw in self.keys if self.keys.count(raw) > 1}):
            raise ValueError(f"`keys` names {twice[0]!r} twice; once tells all that it knows")
        if self.rate and self.of is None:
            raise ValueError("a rate needs `of`, the raw column whose mean it is; add it, or count rows")
        if self.prior is not None and not self.rate:
            raise ValueError("prior smooths a rate and has no effect on a count; remove it, or write `value: rate`")
        if self.of is not None and self.of in (*self.keys, self.session):
            raise ValueError(f"`of` is {self.of!r}, a key or the session too, so that a row would tell its own outcome")
        if self.session is not None and self.session in self.keys:
            raise ValueError(f"session {self.session!r} is a key too, so that no row would count; remove one of them")
        return self


class Binary(Column):
    """0, 1 or null (not known yet). The only type that can be a label.

    Attributes:
        always: whether every row is positive: the label of a log that holds nothing but events (clicks, say), which
            then needs no such column.
    """

    type: Literal["binary"]
    always: bool = False


def _expand(value: Any) -> Any:
    return {"type": value} if isinstance(value, str) else value


AnyColumn = Annotated[
    Categorical | Id | Bag | Sequence | Text | Cross | DatePart | Numeric | History | Missing | Binary,
    Field(discriminator="type"),
    BeforeValidator(_expand),
]
