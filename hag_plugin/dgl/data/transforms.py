"""`ToHAG`: the transform that gives a DGL graph its HAGs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import dgl
import torch
from dgl import DGLGraph
from dgl.transforms import BaseTransform

from hag_plugin.arguments import check_flag, items
from hag_plugin.dgl.aggregation.relation import Relation, relations_of
from hag_plugin.dgl.data.graph import CLASSES, bind
from hag_plugin.hag.build import build_hags, check_build_options
from hag_plugin.modes import outside_inference
from hag_plugin.recall import Recall
from hag_plugin.saved import set_module

TAKEN = (
    *("edge_index", "num_nodes", "size", "targets_first", "self_loops", "ptr", "device"),
    "copies",
)


@set_module("hag_plugin.dgl")
class ToHAG(BaseTransform):  # type: ignore[misc]
    """Gives a graph whose `update_all` runs on the HAG, edge type by edge type.

    `ToHAG().dataset(graphs)` builds those of many graphs in one call.

    Put it last in `dgl.transforms.Compose`: a transform that changes edges after it drops the HAG
    (only `add_self_loop` keeps it). A dataset applies its transform at each access; the HAGs of a
    structure that was met are found again. `dgl.batch`, `dgl.unbatch` and `dgl.reverse` make plain
    graphs, whatever they are given: `batch`, `unbatch`, `reverse` and, for a `GraphDataLoader`,
    `collate`, all in `hag_plugin.dgl`, keep the HAGs. `dgl.save_graphs` writes the plain graph, to
    which `ToHAG` gives its HAGs again after `dgl.load_graphs`.

    Args:
        method: as for `build_hag`: "auto", "greedy" or "none".
        transpose: build the reversed graph's too, which gradients of directed graphs need.
        **options: further arguments of `build_hag`: `width`, `capacity`, `allow_subtraction`,
            `dtype`, `progress`.

    Raises:
        TypeError: an option is unknown, given by the graph, or of the wrong type.
        ValueError: an option is out of range.

    Example:
        >>> import dgl, torch
        >>> import dgl.function as fn
        >>> graph = ToHAG()(dgl.graph(([0, 1, 2], [1, 0, 0])))
        >>> graph.ndata["x"] = torch.tensor([[1.0], [2.0], [4.0]])
        >>> graph.update_all(fn.copy_u("x", "m"), fn.sum("m", "y"))
        >>> graph.ndata["y"].flatten().tolist()
        [6.0, 1.0, 0.0]
    """

    def __init__(self, method: str = "auto", transpose: bool = True, **options: Any) -> None:
        check_build_options({"method": method, **options}, TAKEN)
        check_flag("transpose", transpose)
        self.method = method
        self.transpose = transpose
        self.options = options
        self._built = Recall()

    def __call__(self, g: DGLGraph) -> Any:
        """The graph with its HAGs: features and structure are shared with `g`, which stays.

        Raises:
            TypeError: `g` is no DGLGraph.
        """
        if type(g) not in CLASSES:
            raise TypeError(f"ToHAG takes a DGLGraph or a DGLBlock, got {type(g).__name__}")
        relations = self._relations_of(g)
        with outside_inference(), torch.no_grad():
            for etid, relation in enumerate(relations):
                relation.prepare(g, etid, self.transpose)
        return bind(g.local_var(), relations)

    def dataset(self, graphs: Iterable[Any]) -> list[Any]:
        """Many graphs, each with its HAG: built in one call, in microseconds a graph.

        Args:
            graphs: a list of `DGLGraph`, or a data set of these or of tuples that start with one,
                such as `(graph, label)`.

        Returns:
            The items in order, with each graph in the place of the one that it shares its features
            and structure with.

        Raises:
            TypeError: an item is no `DGLGraph`, and no tuple that starts with one.

        Example:
            >>> import dgl
            >>> ring = dgl.graph(([0, 1, 2], [1, 2, 0]))
            >>> [graph.hag.num_edges for graph in ToHAG().dataset([ring, ring])]
            [3, 3]
        """
        given = items("graphs", graphs)
        taken = [item[0] if isinstance(item, tuple) else item for item in given]
        made = self._built_together(taken)
        return [
            (graph, *item[1:]) if isinstance(item, tuple) else graph
            for graph, item in zip(made, given, strict=True)
        ]

    def _built_together(self, graphs: list[Any]) -> list[Any]:
        simple = [
            type(graph) is DGLGraph and graph.is_homogeneous and graph.device.type == "cpu"
            for graph in graphs
        ]
        if not graphs or not all(simple) or len({graph.idtype for graph in graphs}) > 1:
            return [self(graph) for graph in graphs]
        with outside_inference(), torch.no_grad():
            whole = dgl.batch(graphs, ndata=None, edata=None)
            num_nodes, num_edges = whole.batch_num_nodes(), whole.batch_num_edges()
            first = (num_nodes.cumsum(0) - num_nodes).repeat_interleave(num_edges)
            edges = torch.stack(whole.edges(order="eid")) - first
            options = {"method": self.method, **self.options}
            hags = build_hags(
                edges.split(num_edges.tolist(), dim=1),
                num_nodes.tolist(),
                transpose=self.transpose,
                **options,
            )
        made = []
        for graph, hag in zip(graphs, hags, strict=True):
            relations = (Relation(options, hag),)
            self._built.put((graph._graph,), "relations", relations)
            made.append(bind(graph.local_var(), relations))
        return made

    def _relations_of(self, graph: DGLGraph) -> tuple[Relation, ...]:
        structure = (graph._graph,)
        known: tuple[Relation, ...] | None = self._built.get(structure, "relations")
        if known is not None:
            return known
        options = {"method": self.method, **self.options}
        relations = relations_of(graph)
        if relations is None or any(each.options != options for each in relations):
            relations = tuple(Relation(options) for _ in graph.canonical_etypes)
        self._built.put(structure, "relations", relations)
        return relations

    def __repr__(self) -> str:
        options = "".join(f", {k}={v!r}" for k, v in sorted(self.options.items()))
        return f"ToHAG(method={self.method!r}, transpose={self.transpose}{options})"
