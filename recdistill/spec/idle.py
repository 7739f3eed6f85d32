"""Keys of a member that would be ignored, because the origin of its parameters decides them."""

from typing import Any

from recdistill.spec.members import MemberSpec, ServingView
from recdistill.spec.strict import Strict

_MOVING = ("dropout", "init", "dense", "tables", "warm_start")
_BUILT = ("view", "outputs", "folds", "fold", "dim", "dims", "pool", "trunk", "share")
IDLE = {
    "frozen": _MOVING,
    **dict.fromkeys(("ema", "best", "snapshot", "previous", "remote", "same"), (*_BUILT, "labels", *_MOVING)),
    "scores": (*_BUILT, "inputs", "distort", *_MOVING),
    "edit": (*_BUILT, "labels", "inputs", "distort", "dropout", "init", "warm_start"),
}
WHY = {"frozen": "which does not move", "scores": "of which nothing but scores is read"}


def without_effect(name: str, member: MemberSpec) -> list[str]:
    """The keys set on a member without effect, one sentence each; a default is no setting."""
    decided = WHY.get(member.origin or "", f"which has what {member.of!r} has")
    remedy = "remove it" if member.of is None else f"remove it, or set it on {member.of!r}"
    fields = type(member).model_fields
    given = {key: getattr(member, key) for key in IDLE.get(member.origin or "", ())}
    idle = {k: v for k, v in given.items() if v != fields[k].get_default(call_default_factory=True)}
    if member.embed is not None and member.of is not None and member.edit is None:
        del idle["view"]  # a signal in place of columns is a second name's own
    if isinstance(member.serve, ServingView) and member.of is not None:
        idle["serve"] = member.serve
    return [
        f"members.{name}.{key}: expected nothing on a member with `{member.origin}`, {decided}, found "
        f"{_shown(value)}; {remedy}"
        for key, value in idle.items()
    ]


def _shown(value: Any) -> str:
    """A setting as the job has it, as far as it was set."""
    return str(value.model_dump(exclude_defaults=True) if isinstance(value, Strict) else value)
