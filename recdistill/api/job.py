"""Members, phases and updates as Python objects, and the job that they stand for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recdistill.api.expressions import Expression, Names, Output, shown
from recdistill.distill.compile import problems_of
from recdistill.errors import SpecError
from recdistill.spec.load import parse_job


class View(tuple[str, ...]):
    """Words of a view; ``+`` joins two, ``-`` leaves a column out."""

    def __add__(self, other: Any) -> "View":
        return View((*self, *([other] if isinstance(other, str) else other)))

    def __sub__(self, column: str) -> "View":
        return View((*self, f"-{column}"))


@dataclass(frozen=True)
class Share:
    """What a member takes from others; ``|`` joins two."""

    keys: tuple[tuple[str, Any], ...]

    def __or__(self, other: "Share") -> "Share":
        return Share((*self.keys, *other.keys))


class Member:
    """One member; the keywords are those of a job's member (`recdistill.spec.members.MemberSpec`).

    Args:
        net: its architecture, as `mlp`, `dcn_v2`, ... return it; none for members that follow others.
        view: which columns it reads, or ``embed=signal`` as a keyword for a signal in their place.
        share: what it takes from others, `tables`, `trunk`, `modules`.
        name: its name in the job; by default ``student`` if it serves, else ``teacher`` or ``member_2`` and so on.
        keywords: further keys of a member.
    """

    def __init__(
        self,
        net: Mapping[str, Any] | None = None,
        *,
        view: Sequence[str] | None = None,
        share: Share | None = None,
        name: str | None = None,
        **keywords: Any,
    ) -> None:
        self.net, self.view, self.share, self.name, self.keywords = net, view, share, name, keywords

    def __getattr__(self, name: str) -> Output:
        if name.startswith("_"):
            raise AttributeError(name)
        return Output(self, f".{name}")

    def __getitem__(self, index: int | slice) -> Output:
        return Output(self, f"[{':' if isinstance(index, slice) else index}]")

    def ema(self, **options: Any) -> "Member":
        """A moving average of its parameters."""
        return Member(ema={"of": self, **options})

    def best(self, **options: Any) -> "Member":
        """A copy of it at its best evaluation."""
        return Member(best={"of": self, **options})

    def snapshot(self, **options: Any) -> "Member":
        """A copy of it that is renewed from time to time."""
        return Member(snapshot={"of": self, **options})

    def previous(self) -> "Member":
        """A copy of it as it was when the phase began."""
        return Member(previous={"of": self})

    def again(self, **keywords: Any) -> "Member":
        """The same parameters under a second name, seen through another distortion or input."""
        return Member(same=self, **keywords)

    def described(self, names: Names) -> dict[str, Any]:
        """What a job says of it."""
        found: dict[str, Any] = {} if self.net is None else {"net": dict(self.net)}
        if self.view is not None:
            found["view"] = [*self.view]
        if self.share is not None:
            found["share"] = {key: resolved(value, names) for key, value in self.share.keys}
        for key, value in self.keywords.items():
            if key == "embed":
                found["view"] = {"embed": shown(value, names)}
            else:
                found[key] = resolved(value, names)
        return found


def resolved(value: Any, names: Names) -> Any:
    """A value as YAML holds it: members by name, expressions as text."""
    if isinstance(value, Member):
        return names[id(value)]
    if isinstance(value, Expression):
        return value.text(names)
    if isinstance(value, Mapping):
        return {key: resolved(inner, names) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [resolved(inner, names) for inner in value]
    return value


@dataclass(frozen=True)
class Update:
    """One move within a step: whom to teach, by which terms, on which rows, how often."""

    terms: tuple[Expression, ...]
    options: tuple[tuple[str, Any], ...]

    def __init__(self, *terms: Expression, **options: Any) -> None:
        object.__setattr__(self, "terms", terms)
        object.__setattr__(self, "options", tuple(options.items()))

    def described(self, names: Names) -> dict[str, Any]:
        """What a job says of it."""
        given = {key: resolved(value, names) for key, value in self.options}
        return {"terms": [term.text(names) for term in self.terms], **given}


@dataclass(frozen=True)
class Phase:
    """A stretch of training: terms, or updates; the keywords are those of a job's phase."""

    parts: tuple[Expression | Update, ...]
    options: tuple[tuple[str, Any], ...]

    def __init__(self, *parts: Expression | Update, **options: Any) -> None:
        object.__setattr__(self, "parts", parts)
        object.__setattr__(self, "options", tuple(options.items()))

    def described(self, names: Names) -> dict[str, Any]:
        """What a job says of it."""
        given = {key: resolved(value, names) for key, value in self.options}
        carry = given.get("carry")
        if isinstance(carry, dict):
            given["carry"] = {names.get(id(k), k) if isinstance(k, Member) else k: v for k, v in carry.items()}
        updates = [part.described(names) for part in self.parts if isinstance(part, Update)]
        terms = [part.text(names) for part in self.parts if isinstance(part, Expression)]
        return {**({"updates": updates} if updates else {}), **({"terms": terms} if terms else {}), **given}


def job(
    members: Sequence[Member],
    log: str | Mapping[str, Any],
    *phases: Phase,
    spec: str | Path,
    predict: str | Sequence[str],
    know: Sequence[str] = (),
    **settings: Any,
) -> dict[str, Any]:
    """The job that the words stand for, as a mapping; `fit` trains it.

    Args:
        members: who takes part.
        log: the parquet log, or a simulation ``{"simulate": "marketplace"}``.
        phases: in what order.
        spec: path of the feature spec.
        predict: the label or labels.
        know: the privileged columns.
        settings: further keys of a job, ``train``, ``controls``, ``seeds``, ``feeds``, ...

    Raises:
        SpecError: lists every problem.
    """
    names = named(members)
    raw = {
        "spec": str(spec),
        "log": log,
        "label": predict,
        "privileged": [*know],
        "members": {names[id(member)]: member.described(names) for member in members},
        "phases": [phase.described(names) for phase in phases],
        **{key: resolved(value, names) for key, value in settings.items()},
    }
    parse_job(raw, "job", check=problems_of)
    return raw


def named(members: Sequence[Member]) -> Names:
    """A name for each member: its own, or one by its part.

    Raises:
        SpecError: two members have one name.
    """
    others = [m for m in members if m.name is None and not m.keywords.get("serve")]
    names = {}
    for number, member in enumerate(members):
        fallback = "student" if member.keywords.get("serve") else "teacher" if len(others) == 1 else f"member_{number}"
        names[id(member)] = member.name or fallback
    if len({*names.values()}) < len(members):
        raise SpecError("job", [f"members: {[*names.values()]} names two alike; give them a `name`"])
    return names
