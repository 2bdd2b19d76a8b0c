"""`GraphParts`: a graph and its data as no framework has them, which the adapters hand each other.

PyG's adapter and DGL's do not know each other: each takes its own graphs apart, and puts together
what another took apart.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hag_plugin.hag.hag import HAG

EdgeType = tuple[str, str, str]  # source, relation, target

# Of a graph without types, as DGL calls them.
NODES, EDGES = "_N", ("_N", "_E", "_N")


@dataclass(frozen=True)
class NodePart:
    """The nodes of one type.

    Attributes:
        count: how many there are.
        data: values by name, `[count, *]`.
        per_graph: int64 `[G]`, how many each graph of a batch has; None where it is no batch.
    """

    count: int
    data: dict[str, Tensor]
    per_graph: Tensor | None


@dataclass(frozen=True)
class EdgePart:
    """The edges of one type.

    Attributes:
        edge_index: int64 `[2, E]`; those of each graph of a batch side by side.
        data: values by name, `[E, *]`.
        per_graph: int64 `[G]`, how many each graph of a batch has; None where it is no batch.
        hag: of these edges, where they have one.
    """

    edge_index: Tensor
    data: dict[str, Tensor]
    per_graph: Tensor | None
    hag: HAG | None


@dataclass(frozen=True)
class GraphParts:
    """A graph by its types of nodes and of edges. Values have the names that they had."""

    nodes: dict[str, NodePart]
    edges: dict[EdgeType, EdgePart]

    @property
    def is_typed(self) -> bool:
        """Whether its types have names of their own."""
        return {*self.nodes} != {NODES} or {*self.edges} != {EDGES}
