"""What a record holds: the facts about a layer that more than one part of the package needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from torch import Tensor

from hag_plugin.hag.program import SelfLoops

GRAPHS = {False: "A", "add": "A + I", "fill": "A with one loop a node"}
POWERS = {-0.5: "D^-1/2", -1.0: "D^-1"}


def no_loops(layer: Any) -> SelfLoops:
    """A layer that adds no self-loops."""
    return False


def unscaled(layer: Any) -> tuple[float, float]:
    """A layer that does not normalise."""
    return 0.0, 0.0


def a_sum(layer: Any) -> tuple[str, ...]:
    """A layer that sums."""
    return ("sum",)


def never(layer: Any) -> bool:
    """A layer that weighs no messages by both ends of their edges."""
    return False


@dataclass(frozen=True)
class Record:
    """What a layer is: `y_i = t_i * REDUCE_j(s_j * x_j)`, and what stands around it.

    Attributes:
        name: the qualified name of its class.
        graphs: the arguments of `forward` that are graphs.
        features: the argument with a row for each node; None: what it is depends on the call.
        edge_values: arguments with one value an edge. One called `edge_weight` multiplies messages.
        weights_as_given: edge weights are taken as they are by a layer that normalises without any.
        self_loops: from the layer, the loops of the graph that is aggregated over, if it adds any:
            False, "add" or "fill".
        exponents: from the layer, those of the degrees in `s` and `t`; 0: not scaled. In PyG the
            degrees of both are the targets', loops and weights counted; in DGL they are those of
            sources and of targets, 1 at least.
        reduce: from the layer, its reducers.
        relations: from the layer, the number of relations: the graph is then one for each. None, or
            if it gives None: one graph.
        attends: from the layer, whether a score of both ends of an edge weighs its message.
        matrix: what is aggregated over, in words, where loops and exponents do not tell it.
        weight: name of the parameter that features are multiplied with, before or after. Of several
            names with spaces between them, the layer's is the first that there is.
        root: the same for a node's own features.
        bias: name of what is added, likewise.
        inputs: the dimension of `weight` and `root` that goes over the input's features, -1 or -2.
        coefficients: name of `[R, B]`: the weights of relations are such sums of `weight`.
    """

    name: str
    graphs: tuple[str, ...] = ("edge_index",)
    features: str | None = "x"
    edge_values: tuple[str, ...] = ()
    weights_as_given: bool = False
    self_loops: Callable[[Any], SelfLoops] = no_loops
    exponents: Callable[[Any], tuple[float, float]] = unscaled
    reduce: Callable[[Any], tuple[str, ...]] = a_sum
    relations: Callable[[Any], int | None] | None = None
    attends: Callable[[Any], bool] = never
    matrix: str = ""
    weight: str = ""
    root: str = ""
    bias: str = ""
    inputs: int = -1
    coefficients: str = ""

    @property
    def layer(self) -> str:
        """The class without its module."""
        return self.name.rpartition(".")[2]

    @property
    def library(self) -> str:
        """Of which it is: "torch_geometric" or "dgl"."""
        return self.name.partition(".")[0]

    @property
    def outputs(self) -> int:
        """The dimension of `weight` and `root` that goes over the output's features."""
        return -3 - self.inputs

    def aggregates(self, layer: Any) -> str:
        """What a layer aggregates, in words: reducers and matrix."""
        how = ("attention",) if self.attends(layer) else self.reduce(layer)
        return f"{', '.join(how)} over {self._matrix(layer)}"

    def _matrix(self, layer: Any) -> str:
        if self.matrix:
            return self.matrix
        if self.relations is not None and self.relations(layer) is not None:
            return "each relation's A"
        source, target = self.exponents(layer)
        matrix = GRAPHS[self.self_loops(layer)]
        if (source or target) and matrix != "A":
            matrix = f"({matrix})"
        return " ".join(part for part in (_power(target), matrix, _power(source)) if part)


def _power(exponent: float) -> str:
    return POWERS.get(exponent, f"D^{exponent:g}") if exponent else ""


def held(layer: Any, names: str) -> str:
    """The first of some names, with spaces between them, that a layer has a tensor of; or ""."""
    return next((name for name in names.split() if isinstance(_get(layer, name), Tensor)), "")


def _get(layer: Any, name: str) -> Any:
    try:
        return attrgetter(name)(layer)
    except AttributeError:
        return None
