"""What a device sends in a step of full-graph training, by the formulas of other systems.

CAGNET, arXiv 2005.03300, section IV: words that a process moves in an epoch, by how matrices are
split. Plexus, arXiv 2505.04083: the model of communication by which it chooses its grid, as it is
released with its code (`performance/comm_model.py`, without regard to where devices are).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

WORD = 4  # bytes, of float32 and of an index


@dataclass(frozen=True)
class Graph:
    """A graph and a model on it.

    Attributes:
        name: of the data set.
        nodes: n.
        edges: nnz(A).
        widths: of the features, the hidden layers and the output.
    """

    name: str
    nodes: int
    edges: int
    widths: tuple[int, ...]

    @property
    def layers(self) -> Iterator[tuple[int, int]]:
        """Widths before and after each layer."""
        return pairwise(self.widths)


@dataclass(frozen=True)
class Sent:
    """Bytes that a device sends in a step, and with which shape of its own."""

    nbytes: float
    shape: str = ""


def one_d(graph: Graph, devices: int) -> Sent:
    """CAGNET's 1D: rows are broadcast to all, whatever they need; gradients are reduced to rows."""
    others = graph.nodes * (devices - 1) / devices
    return Sent(WORD * sum(others * f + graph.nodes * g + f * g for f, g in graph.layers))


def one_and_half_d(graph: Graph, devices: int) -> Sent:
    """CAGNET's 1.5D with the replication that sends least: each of c copies of a block row takes a
    c-th of the broadcasts, and their sums are reduced in a ring."""

    def words(copies: int) -> float:
        each = graph.nodes / copies + _reduced(copies, graph.nodes * copies / devices)
        return sum(each * (f + g) + f * g for f, g in graph.layers)

    copies = min((c for c in _powers(devices) if c * c <= devices), key=words)
    return Sent(WORD * words(copies), f"c = {copies}")


def two_d(graph: Graph, devices: int) -> Sent:
    """CAGNET's 2D (SUMMA): `8nf / sqrt(P) + 2nnz / sqrt(P) + f^2` a layer."""
    side = math.sqrt(devices)
    return Sent(WORD * sum(
        4 * graph.nodes * (f + g) / side + 2 * graph.edges / side + f * g for f, g in graph.layers
    ))  # fmt: skip


def three_d(graph: Graph, devices: int) -> Sent:
    """CAGNET's 3D: `12nf / P^(2/3) + 2nnz / P^(2/3)` a layer."""
    plane = devices ** (2 / 3)
    return Sent(WORD * sum(
        6 * graph.nodes * (f + g) / plane + 2 * graph.edges / plane for f, g in graph.layers
    ))  # fmt: skip


def plexus(graph: Graph, devices: int) -> Sent:
    """Plexus with the grid that sends least."""
    grids = [(x, y, devices // x // y) for x in _powers(devices) for y in _powers(devices // x)]
    best = min(grids, key=lambda grid: plexus_words(graph, grid))
    return Sent(WORD * plexus_words(graph, best), " x ".join(map(str, best)))


def plexus_words(graph: Graph, grid: tuple[int, int, int]) -> float:
    """Of a grid X x Y x Z, whose axes change their parts from layer to layer."""
    x, y, z = grid
    roles = ((x, y, z), (z, x, y), (y, z, x))  # sums over neighbours, sums of products, weights
    total, nodes = 0.0, graph.nodes
    for number, (f, g) in enumerate(graph.layers):
        over, products, weights = roles[number % 3]
        # Forward and backward: the sum over neighbours is reduced; so is the product, forward.
        total += 2 * _reduced(over, nodes * f / (weights * products))
        total += _reduced(products, nodes * g / (weights * over))
        # Weights are gathered forward and backward, and their gradient is reduced to parts.
        total += 3 * _gathered(weights, f * g / (over * products))
        # Features are gathered and their gradient is reduced to parts; that of others is reduced.
        inputs = nodes * f / (over * products)
        total += _reduced(weights, inputs) if number else 2 * _gathered(weights, inputs)
    return total


def _gathered(group: int, words: float) -> float:
    """What each member of a ring sends of what is gathered, or reduced to parts."""
    return (group - 1) / group * words


def _reduced(group: int, words: float) -> float:
    return 2 * _gathered(group, words)


def _powers(most: int) -> list[int]:
    """Powers of two up to a number."""
    return [1 << k for k in range(most.bit_length())]


FORMULAS: dict[str, Callable[[Graph, int], Sent]] = {
    "CAGNET 1D": one_d,
    "CAGNET 1.5D": one_and_half_d,
    "CAGNET 2D": two_d,
    "CAGNET 3D": three_d,
    "Plexus": plexus,
}


def random_halo(graph: Graph, parts: int) -> float:
    """Rows of others that a part reads over its own where nodes are dealt out at random, if all had
    the mean degree: as bad as a partition gets."""
    degree = graph.edges / graph.nodes
    return (parts - 1) * (1 - (1 - 1 / parts) ** degree)


def strategies_of(names: Sequence[str]) -> str:
    """In words: those of all layers, or one where they are alike."""
    return names[0] if len({*names}) == 1 else "; ".join(names)
