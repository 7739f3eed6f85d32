"""The types of columns, as a feature spec declares them."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from recdistill.spec.strict import Strict


class Column(Strict):
    """What every typed column has: the raw column that it reads (default: its own name)."""

    column: str | None = None

    @property
    def further(self) -> list[str]:
        """Raw columns that it reads besides."""
        return []


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
