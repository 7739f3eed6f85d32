"""A frozen member is described by the run that it comes from: its net and its view are looked up there."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recdistill.spec.members import PRIVILEGED, MemberSpec
from recdistill.spec.strict import nearest

DESCRIBED = ("net", "dim", "dims", "pool", "outputs", "labels")


def described_by_runs(
    raw: Mapping[str, Any], jobs: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, Any], list[str]]:
    """A job in which every frozen member says what its run says of it, and what is wrong with those that cannot.

    Args:
        raw: the job as a mapping.
        jobs: the jobs of the runs that it names, as far as they could be read.
    """
    members = raw.get("members")
    if not isinstance(members, dict):
        return dict(raw), []
    problems: list[str] = []
    made = {}
    for name, member in members.items():
        frozen = member.get("frozen") if isinstance(member, dict) else None
        if isinstance(frozen, dict) and "net" not in member and {"run", "member"} <= frozen.keys():
            found = _described(frozen, jobs, f"members.{name}.frozen", problems)
            member = {**found, **member}
        made[name] = member
    return {**raw, "members": made}, problems


def runs_of(raw: Mapping[str, Any]) -> list[str]:
    """The runs that the frozen members of a job come from."""
    members = raw.get("members")
    found = [m.get("frozen") for m in members.values() if isinstance(m, dict)] if isinstance(members, dict) else []
    return list(dict.fromkeys(str(frozen["run"]) for frozen in found if isinstance(frozen, dict) and "run" in frozen))


def job_file(run: str) -> Path:
    """Where a run says what it has trained."""
    return Path(run) / "job.yaml"


def _described(
    frozen: Mapping[str, Any], jobs: Mapping[str, Mapping[str, Any]], place: str, problems: list[str]
) -> dict[str, Any]:
    """What a run's job says of a member."""
    job, name = jobs.get(str(frozen["run"])), str(frozen["member"])
    if job is None:
        problems.append(f"{place}: {frozen['run']} is no run; name the folder of a finished one")
        return {}
    members = {key: MemberSpec.model_validate(value) for key, value in job["members"].items()}
    kind = name if name in members else name.rpartition("_")[0]  # teacher_0 is a copy of teacher
    if kind not in members:
        problems.append(f"{place}: {frozen['run']} has no member {name!r}; {nearest(name, members)}")
        return {}
    member = members[members[kind].of or kind]
    if member.inputs or member.embed or member.scores:
        problems.append(
            f"{place}: {name!r} reads other members; write its scores with `recdistill score` and read those"
        )
    view = [word for word in member.columns if word != PRIVILEGED]
    view += job.get("privileged", []) if PRIVILEGED in member.columns else []
    lent = members.get(member.share.trunk or "", member)
    found = {key: value for key, value in member.model_dump(exclude_defaults=True).items() if key in DESCRIBED}
    return {**found, "view": view, "trunk": lent.trunk}
