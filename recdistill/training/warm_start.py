"""Parameters to begin with: a member of a finished run, mapped value by value into the vocabularies of this one."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recdistill.data.encoded import load_fitted
from recdistill.data.fit import FittedSpec, same_rows
from recdistill.data.graph import Graph
from recdistill.data.nodes import GRAPH
from recdistill.data.transforms.rows import UNKNOWN
from recdistill.data.transforms.sequence import GAP_ROWS
from recdistill.distill.member import Member
from recdistill.errors import RunError
from recdistill.nets.graph import Bipartite, Propagation, Sparse
from recdistill.nets.retrieval import GraphNet
from recdistill.spec.features import FeatureSpec
from recdistill.spec.graph import SIDES
from recdistill.spec.load import read_yaml
from recdistill.spec.members import FromRun
from recdistill.spec.train import TrainSpec
from recdistill.training import checkpoint
from recdistill.training.cast import Cast

SETTLED = tuple(f"net.settled_{side}" for side in SIDES)


def warm_start(cast: Cast, member: Member, source: FromRun, fitted: FittedSpec, *, exact: bool = False) -> None:
    """Copy a member's parameters from a run: dense ones as they are, table rows by the value that they stand for.

    Args:
        cast: the members.
        member: the one that begins with the parameters of another.
        source: the other one.
        fitted: the columns of this run.
        exact: the member is to answer as it did there: numbers must be scaled alike, and values that it has not known
            are looked up as unknown ones.

    Raises:
        RunError: the run has no such member, or the member is built differently.
    """
    place = f"members.{member.name}.{'frozen' if exact else 'warm_start'}"
    run = Path(source.run)
    folder = run / f"seed_{chosen_seed(run) if source.seed is None else source.seed}" / "checkpoints" / "final"
    parameters = checkpoint.read(folder)
    layout = json.loads((folder / "layout.json").read_text(encoding="utf-8"))
    if source.member not in layout["members"]:
        raise RunError(f"{place}: {run} has no member {source.member!r}; it has {list(layout['members'])}")
    with torch.no_grad():
        for key, value in cast.heads[member.name].state_dict().items():
            if key in SETTLED:
                continue
            found = parameters.get(f"{source.member}.{key}")
            if found is None or found.shape != value.shape:
                there = "does not exist" if found is None else f"has {tuple(found.shape)}"
                raise RunError(
                    f"{place}: {key} has shape {tuple(value.shape)}, "
                    f"but in {source.member!r} of {run} it {there}; build both alike"
                )
            value.copy_(found)
        theirs = load_fitted(run / "fitted")
        if exact:
            _refuse_other_scales(cast, member, source, fitted, theirs)
        shards = {(b, table): (s, first) for b in cast.layout.banks for table, s, first in cast.tables.shards(b)}
        for feature, bank in cast.layout.members[member.name].lookups:
            origin = layout["members"][source.member].get(feature.name)
            if origin is not None and (bank, feature.table) in shards:
                shard, first = shards[bank, feature.table]
                rows = np.arange(GAP_ROWS)
                if feature.form != "gaps":
                    rows = same_rows(fitted.columns[feature.column], theirs.columns[feature.column])
                    rows = np.where(rows < 0, UNKNOWN, rows) if exact else rows
                _copy_rows(shard, first, parameters[origin], rows, feature.name)
        if exact and member.net.whole:
            columns = [str(member.net.options[side]) for side in SIDES]
            tables = [layout["members"][source.member][column] for column in columns]
            beside = [same_rows(fitted.columns[column], theirs.columns[column]) for column in columns]
            _settle(cast, member, source, parameters, tables, beside)


def _settle(
    cast: Cast,
    member: Member,
    source: FromRun,
    parameters: Mapping[str, Tensor],
    tables: Sequence[str],
    rows: Sequence[np.ndarray],
) -> None:
    """Give a member the vectors that its own run has made of users and items by the graph that it was trained on.

    Args:
        cast: the members.
        member: the member.
        source: where it comes from.
        parameters: of that run.
        tables: those of its users and items among them.
        rows: for each row of the tables of this run the one of that run, -1 for values that it has not known.
    """
    net = cast.heads[member.name].net
    assert isinstance(net, GraphNet)
    made = [parameters[key] for name in SETTLED if (key := f"{source.member}.{name}") in parameters]
    if not made:  # it has moved there
        halves = Graph.load(Path(source.run) / "nodes" / GRAPH).normalised()
        user_UD, item_ID = (parameters[table] for table in tables)
        made = [*net.convolve(Propagation(Bipartite(*(Sparse(*half) for half in halves))), user_UD, item_ID)]
    for name, vectors, row_N in zip(SETTLED, made, rows, strict=True):
        known_N = torch.from_numpy(np.where(row_N < 0, UNKNOWN, row_N))
        cast.heads[member.name].get_buffer(name).copy_(vectors[known_N])


def _refuse_other_scales(cast: Cast, member: Member, source: FromRun, fitted: FittedSpec, theirs: FittedSpec) -> None:
    """Raise unless the numbers that a member reads are scaled as in its own run.

    Raises:
        RunError: a column is scaled otherwise.
    """
    layout = cast.layout.members[member.name]
    for name in (*layout.serving_floats, *layout.privileged_floats):
        there = theirs.columns.get(name)
        if there is None or fitted.columns[name].scaling != there.scaling:
            raise RunError(
                f"members.{member.name}.frozen: {name!r} is scaled otherwise here than in {source.run}; train with "
                f"`extends: {source.run}`, or write its scores with `recdistill score` and read them with `scores:`"
            )


def refuse_other_negatives(member: Member, source: FromRun, label: str, spec: FeatureSpec, settings: TrainSpec) -> None:
    """Raise unless a frozen member has seen the share of negatives that the members of this job see.

    Args:
        member: the member.
        source: where it comes from.
        label: by which negatives are left out here.
        spec: the feature spec.
        settings: how the job trains.

    Raises:
        RunError: it has seen another share, so that its logits are those of other odds.
    """
    run = Path(source.run)
    job, theirs = read_yaml(run / "job.yaml"), read_yaml(run / "spec.yaml")
    labels = [job["label"]] if isinstance(job["label"], str) else job["label"]
    rate_there = theirs.get("negative_keep_rate", 1.0) * job["train"]["negative_keep_rate"]
    rate_here = spec.negative_keep_rate * settings.negative_keep_rate
    if not math.isclose(rate_there, rate_here) or (rate_here < 1 and labels[0] != label):
        raise RunError(
            f"members.{member.name}.frozen: {run} has kept a share {rate_there:g} of the negatives of {labels[0]!r}, "
            f"this job keeps {rate_here:g} of those of {label!r}, so that its logits are of other odds; write its "
            "scores with `recdistill score`, which are corrected, and read them with `scores:`"
        )


def chosen_seed(run: Path) -> int:
    """The seed whose student a run has exported.

    Raises:
        RunError: the run is not complete.
    """
    try:
        return int(json.loads((run / "report.json").read_text(encoding="utf-8"))["artefact"]["seed"])
    except (OSError, KeyError, ValueError) as error:
        raise RunError(f"{run}: is no complete run ({error}); finish it with `recdistill run --resume`") from None


def _copy_rows(shard: Tensor, first: int, source: Tensor, rows: np.ndarray, column: str) -> None:
    if shard.shape[1] != source.shape[1]:
        raise RunError(
            f"warm start: the table of {column!r} has width {shard.shape[1]}, in the other run {source.shape[1]}"
        )
    local = torch.from_numpy(rows[first : first + len(shard)])
    found = local >= 0
    shard[found.to(shard.device)] = source[local[found]].to(shard.device)
