"""Models as graphs of operations: what is computed, of what size, and which gradients flow.

`trace.trace` makes them from PyG and DGL models; `OpGraph` takes them from code as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from hag_plugin.parallel.graphs.stats import GraphStats
from hag_plugin.parallel.layouts import chunk_sizes
from hag_plugin.saved import set_module

KINDS = (
    "input",  # fixed features
    "embedding",  # learned features: a table of one row a node
    "convolution",  # aggregation, with its linear transform if it has one
    "attention",  # transform, scores, softmax over the edges of a target, weighted sum
    "linear",
    "elementwise",
    "normalisation",
    "concatenation",
    "sum",  # elementwise over several inputs: residual connections, maximum of layers
    "pooling",  # one row a graph
    "opaque",  # anything else: runs on every device
    "loss",
)
NO_TYPE = ("of", "")
OVER = ("nodes", "features", "everything")


@dataclass(frozen=True)
class Weight:
    """A parameter or buffer of an operation, and which of its dimensions go over what.

    Attributes:
        role: what it is called in the layer, or in the function's signature.
        name: in the model. Operations that have the same one share it.
        inputs: the dimension over features that come in; None: there is none.
        outputs: likewise, over those that go out.
        parts: likewise, over heads or relations.
        shape: of the whole, where it is trained and the operation's figures count it; else None.
    """

    role: str
    name: str
    inputs: int | None = None
    outputs: int | None = None
    parts: int | None = None
    shape: tuple[int, ...] | None = None


@set_module("hag_plugin.parallel")
@dataclass(frozen=True)
class Op:
    """One operation. Its output is `[rows, width]`.

    Attributes:
        name: unique in the model: the path of the module, or the name of the function.
        kind: one of `KINDS`.
        inputs: indices of the operations whose outputs it takes, all before it.
        width: features of the output.
        input_width: features that are aggregated or transformed.
        rows: "nodes" is None; otherwise the number of rows (of pooled graphs, say).
        of: the type of these nodes, where there are several.
        input_grad: whether gradients flow to its inputs (not to fixed features).
        graph: of convolutions and attention, the key in `OpGraph.graphs`.
        transform: whether a convolution has weights `[input_width, width]`.
        commutes: whether the transform may go before the aggregation.
        root: whether a node's own row has weights of its own.
        bias: whether it has a bias `[width]`.
        reduce: "sum", "mean", "max", "min", or several.
        heads: of attention; they are concatenated if `concatenated`, else averaged.
        concatenated: see `heads`.
        relations: kinds of edges, with weights each.
        bases: B > 0: the weights of relations are sums of B matrices, with coefficients
            `[relations, B]` (RGCN, arXiv 1703.06103, equation 3).
        blocks: the weights of relations are so many blocks on a diagonal (equation 4).
        edge_products: `(k, n)` of dense products that a convolution makes for every edge.
        node_products: the same for every node, in place of `transform`.
        message_width: where messages are made for every edge, their width.
        values: trainable values that no other attribute tells of.
        over: of a normalisation, what it normalises over: "nodes" (BatchNorm), "features"
            (LayerNorm, softmax) or "everything" (PyG's LayerNorm).
        affine: whether a normalisation has a weight and a bias for each feature.
        statistics: how many sums a normalisation takes over what is normalised over, forward and
            backward.
        keeps: what the backward pass of a function needs, as `functions.kept` says; by default
            what ReLU and BatchNorm need.
        by_row: of what is opaque, whether each row of the output depends on the same row alone.
        by_edges: of a layer that is opaque, whether each row of the output depends on the edges
            into it and their ends alone.
        means: of a function that is opaque, how many values it takes that are means over all nodes
            of what it makes row by row.
        drops: whether a function over edges may drop some: it is told which.
        parameters: what it computes with; the figures above say how many values that are.
        layer: the class, for the reader.
    """

    name: str
    kind: str
    inputs: tuple[int, ...] = ()
    width: int = 0
    input_width: int = 0
    rows: int | None = None
    of: str = ""
    input_grad: bool = True
    graph: str = ""
    transform: bool = False
    commutes: bool = False
    root: bool = False
    bias: bool = False
    reduce: tuple[str, ...] = ("sum",)
    heads: int = 1
    concatenated: bool = True
    relations: int = 1
    bases: int = 0
    blocks: int = 1
    edge_products: tuple[tuple[int, int], ...] = ()
    node_products: tuple[tuple[int, int], ...] = ()
    message_width: int = 0
    values: int = 0
    over: str = "nodes"
    affine: bool = False
    statistics: tuple[int, int] = (2, 2)
    keeps: str | None = None
    by_row: bool = False
    by_edges: bool = False
    means: int = 0
    drops: bool = False
    parameters: tuple[Weight, ...] = ()
    layer: str = ""

    @property
    def weights(self) -> int:
        """Number of trainable values, biases left out."""
        products = sum(k * n for k, n in (*self.edge_products, *self.node_products))
        dense = self.transform or self.kind in ("linear", "attention")
        own = self.input_width * self.width if self.root else 0
        each = self.input_width * self.wide // self.blocks if dense else 0
        matrices = self.bases or self.relations
        return self.values + products + own + matrices * each + self.relations * self.bases

    @property
    def relational(self) -> bool:
        """Whether edges are of kinds, so that there is no one sum with one matrix."""
        return self.relations > 1 or self.bases > 0 or self.blocks > 1

    @property
    def needs(self) -> str:
        """What its backward pass needs, if it is a function."""
        default = {"elementwise": "output", "normalisation": "input"}.get(self.kind, "")
        return default if self.keeps is None else self.keeps

    @property
    def biases(self) -> int:
        """Number of trainable values that belong to one feature each."""
        if self.kind == "normalisation":
            return 2 * self.width * self.affine
        return self.bias * self.width + (2 * self.wide if self.kind == "attention" else 0)

    @property
    def wide(self) -> int:
        """Features of all heads, before they are averaged."""
        return self.width * (1 if self.concatenated else self.heads)


@set_module("hag_plugin.parallel")
@dataclass(frozen=True, eq=False)
class OpGraph:
    """A model and the graphs it runs on.

    Attributes:
        ops: in an order in which they can be run; the first is the input.
        graphs: counts of the graphs that the layers aggregate over, by key.
        nodes: N, of all types.
        itemsize: bytes a value.
        model: its name, for the reader.
        types: how many nodes there are of each type, where there are several.

    Example:
        >>> stats = GraphStats.assumed(1000, 20_000)
        >>> ops = [Op("x", "input", width=64), gcn("conv1", 0, 64, 16, input_grad=False)]
        >>> OpGraph.of(ops, {"A": stats}).ops[1].weights
        1024
    """

    ops: tuple[Op, ...]
    graphs: dict[str, GraphStats] = field(default_factory=dict)
    nodes: int = 0
    itemsize: int = 4
    model: str = ""
    types: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        ops: Sequence[Op],
        graphs: dict[str, GraphStats],
        itemsize: int = 4,
        model: str = "",
        types: Mapping[str, int] | None = None,
    ) -> OpGraph:
        """The graph of `ops`, checked.

        Args:
            ops: the first is the input.
            graphs: counts by key; one at least, which says how many nodes there are.
            itemsize: bytes a value.
            model: its name.
            types: as in `types`.

        Raises:
            ValueError: names the operation that does not fit.
        """
        names: set[str] = set()
        for i, op in enumerate(ops):
            what = f"operation {op.name!r}"
            if op.kind not in KINDS:
                raise ValueError(f"{what} is of kind {op.kind!r}; expected one of {KINDS}")
            if op.name in names:
                raise ValueError(f"{what} occurs twice; expected unique names")
            names.add(op.name)
            if any(j not in range(i) for j in op.inputs):
                raise ValueError(f"{what} takes {op.inputs}; expected operations before {i}")
            if (op.kind in ("input", "embedding")) != (not op.inputs):
                raise ValueError(f"{what} of kind {op.kind!r} takes {len(op.inputs)} inputs")
            if op.kind in ("convolution", "attention") and op.graph not in graphs:
                raise ValueError(f"{what} is on graph {op.graph!r}; expected one of {list(graphs)}")
            if op.over not in OVER:
                raise ValueError(f"{what} normalises over {op.over!r}; expected one of {OVER}")
            if op.width < 1 or op.heads < 1 or op.relations < 1:
                raise ValueError(f"{what} has {op.width} features, {op.heads} heads and "
                                 f"{op.relations} relations; expected 1 or more")  # fmt: skip
        if types:
            nodes = sum(types.values())
            return cls(tuple(ops), dict(graphs), nodes, itemsize, model, dict(types))
        counts = {stats.nodes for stats in graphs.values()}
        if len(counts) != 1:
            raise ValueError(f"the graphs have {sorted(counts)} nodes; expected one number")
        return cls(tuple(ops), dict(graphs), counts.pop(), itemsize, model)

    @property
    def edges(self) -> list[tuple[int, int]]:
        """(producer, consumer) of every tensor that goes from one operation to another."""
        return [(i, j) for j, op in enumerate(self.ops) for i in op.inputs]

    @cached_property
    def users(self) -> dict[str, list[int]]:
        """Of each parameter that several operations share, these operations."""
        found: dict[str, list[int]] = {}
        for i, op in enumerate(self.ops):
            for name in dict.fromkeys(weight.name for weight in op.parameters):
                found.setdefault(name, []).append(i)
        return {name: ops for name, ops in found.items() if len(ops) > 1}

    def rows(self, parts: int, of: str = "") -> np.ndarray:
        """Nodes of a type in each of `parts` parts, int64 `[parts]`; the same for all layers."""
        if self.types:
            return chunk_sizes(self.types[of], parts)
        return next(iter(self.graphs.values())).partition(parts).rows

    @property
    def fingerprint(self) -> str:
        """Of the operations, not of the graphs: plans are for one model."""
        said_apart = (
            "layer",
            "keeps",
            "by_row",
            "by_edges",
            "parameters",
        )  # none changes what is computed
        said = [
            sorted(
                (k, v) for k, v in asdict(op).items() if k not in said_apart and (k, v) != NO_TYPE
            )
            for op in self.ops
        ]
        text = repr(said) + str(self.itemsize)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


# Layers ---------------------------------------------------------------------------------------


def gcn(name: str, source: int, width_in: int, width: int, **changes: Any) -> Op:
    """GCNConv: one transform, before or after the sum."""
    return convolution(name, source, width_in, width, bias=True, **changes)


def convolution(name: str, source: int, width_in: int, width: int, **changes: Any) -> Op:
    """A sum over neighbours with a transform that may go before or after it."""
    settings: dict[str, Any] = {"graph": "A", "transform": True, "commutes": True}
    return Op(name, "convolution", (source,), width, width_in, **(settings | changes))
