"""The users and items of a log: what connects them, and what is known of each."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from recdistill.data.catalogue import Catalogue
from recdistill.data.edges import build_graph
from recdistill.data.encoded import EncodedLog
from recdistill.data.graph import Graph
from recdistill.spec.graph import GraphSpec

GRAPH, CATALOGUE = "graph.safetensors", "catalogue.safetensors"


@dataclass(frozen=True, eq=False)
class Nodes:
    """Users and items.

    Attributes:
        graph: the edges of the rows that are trained on.
        catalogue: the columns of both, as of the last of these rows.
    """

    graph: Graph
    catalogue: Catalogue

    @classmethod
    def of(cls, log: EncodedLog, spec: GraphSpec, columns: Iterable[str], splits: tuple[str, ...]) -> "Nodes":
        """The nodes of some splits of a log.

        Args:
            log: the encoded log.
            spec: what the job says of them.
            columns: the serving columns that are read of them.
            splits: in the order of time.

        Raises:
            LogError: the graph has no edges, is too large, or its columns do not suit.
        """
        graph = build_graph(
            log, spec.user, spec.item, where=spec.where, before=spec.before, splits=splits, min_degree=spec.min_degree
        )
        read = {*columns}
        sides = {side: [names[0], *(n for n in names[1:] if n in read)] for side, names in spec.sides.items()}
        catalogue = Catalogue.of(log, sides, splits)
        return cls(graph if spec.permuted is None else graph.permuted(spec.permuted), catalogue)

    def save(self, folder: Path) -> None:
        """Write both to a folder."""
        self.graph.save(folder / GRAPH)
        self.catalogue.save(folder / CATALOGUE)

    @classmethod
    def load(cls, folder: Path, log: EncodedLog) -> "Nodes":
        """What `save` has written, for a log that was encoded with the same columns.

        Raises:
            LogError: the folder holds none.
        """
        return cls(Graph.load(folder / GRAPH), Catalogue.load(folder / CATALOGUE, log))
