"""The users and items of a run, kept for whoever opens it later: for scores of graphs, and lists of another log."""

from recdistill.data.encoded import EncodedLog
from recdistill.data.graph import Graph
from recdistill.data.nodes import Nodes
from recdistill.distill.compile import Plan
from recdistill.publish import published
from recdistill.runs.folder import RunFolder
from recdistill.training.rankings import Rankings, events_of, lost_of
from recdistill.training.reading import nodes_of

KNOWN = "known.safetensors"


def keep_nodes(folder: RunFolder, plan: Plan, log: EncodedLog, fit_on: tuple[str, ...]) -> None:
    """Write the users and items that a plan with a graph trains on, and what lists leave out.

    Args:
        folder: the run.
        plan: its members.
        log: the encoded log of the final parameters.
        fit_on: the splits that these are trained on.
    """
    nodes = nodes_of(plan, log, fit_on)
    assert nodes is not None and plan.graph is not None
    with published(folder.root / "nodes") as work:
        nodes.save(work)
        if plan.ranking is not None:
            events_of(log, plan.graph, ("train", "valid")).save(work / KNOWN)


def kept_nodes(folder: RunFolder, plan: Plan, log: EncodedLog) -> Nodes | None:
    """The users and items of a run, if its job speaks of them, for a log encoded with the run's columns.

    Raises:
        LogError: the run has kept none.
    """
    return None if plan.graph is None else Nodes.load(folder.root / "nodes", log)


def kept_rankings(folder: RunFolder, plan: Plan, log: EncodedLog) -> Rankings | None:
    """How lists are judged on all rows of another log, if the job judges any: what the run knew is left out.

    Raises:
        LogError: the run has kept nothing, or the log has no event that counts.
    """
    if plan.graph is None or plan.ranking is None:
        return None
    known = Graph.load(folder.root / "nodes" / KNOWN)
    lost_W = lost_of(log, plan.graph, "test")
    return Rankings.of(plan.ranking, events_of(log, plan.graph, ("test",)), known, lost_W=lost_W)
