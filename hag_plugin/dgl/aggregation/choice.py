"""`Choice`: what a step of message passing runs on, and why; with the reasons in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from hag_plugin.explanation import Kind

# Why, in words.
GIVEN = "its graph has a HAG"
BACK = "its graph came back"
FIRST = "first met: a graph gets its HAG when it comes back in a later forward"
MET = "first met: its rows are summed as they are"
CHANGED = "the graph was changed since its HAG was built"
MANY = "too many edges to search in training: call ToHAG"
OTHER_GRAPH = "a graph of a class that is not DGL's own"
NO_GRAPH = "no graph was passed to it"
NO_STEP = "it aggregated nothing"
NODE_FUNCTION = "update_all was given a function of nodes"
UNFIT = "a field that is missing, or that is not the one that is reduced"
UNKNOWN_REDUCER = "a reduce function that is not known for its message"
UNKNOWN_MESSAGE = "a message function that is not known"
EDGE_ROWS = "messages are rows of edges"
WEIGHTED_EXTREMUM = "edge weights with a maximum or minimum"
OTHER_WEIGHTS = "edge weights that are not one number an edge, or one for each head of the features"
FIRST_WEIGHTED = "first met with edge weights: DGL's own code is as fast"
FIRST_WEIGHTS = "edge weights have not come back"
NO_FACTORS = "edge weights are not a product of node factors"
WEIGHTED = ", with edge weights that are no product of node factors: summed as it is"
FACTORS = ", with edge weights that are products of node factors"
FIRST_TYPES = "edge types have not come back"
TYPES = ", with edge types that came back"
NO_EDGES = "there are no edges"
NOT_FINITE = "NaN or infinities in a maximum or minimum"
UNSORTED = "{} with gradients: edges are not sorted by source"
SCORED = "attention in one pass over its edges"
SCORED_FEW = "attention with few edges for its nodes: DGL's own code is as fast"
SCORED_FIRST = "first met, with few edges for attention: DGL's own code is as fast"
SCORED_COMPILED = "attention in compiled code"
SCORED_AUTOCAST = "attention under autocast"
RETURNS_SCORES = "get_attention: it returns a value for each edge"
SEVERAL_TYPES = "a graph of several edge types"
OTHER_ROWS = "features that are not rows of the graph's nodes"
OTHER_EDGE_WEIGHTS = "edge weights that are not one number an edge in the dtype of the features"
OTHER_EDGE_ROWS = "edge features that are not a row an edge in the dtype of the features"
OTHER_EDGE_TYPES = "edge types that are not one int64 number an edge"
ISOLATED = "there are nodes without edges, which the layer does not allow"
TIES = "{} with gradients: DGL breaks ties in an order of its own"
STRANGER = "of the graphs before it none came back: DGL's own code is as fast"

# What graphs that are met first are left to DGL for, and why those are that come after many such.
OF_STRANGERS = {
    FIRST: STRANGER,
    FIRST_WEIGHTED: FIRST_WEIGHTED,
    SCORED_FEW: SCORED_FEW,
    SCORED_FIRST: STRANGER,
}


class Ran(NamedTuple):
    """A step that ran.

    Attributes:
        value: what `update_all` stores, by field; or the rows of one field.
        kind: what it ran on. "stock" where DGL's kernels did all of it.
        reason: why.
    """

    value: Any
    kind: Kind
    reason: str


STRENGTH: dict[Kind, int] = {"stock": 0, "plain": 1, "HAG": 2}


def strongest(ran: Iterable[Ran]) -> Ran:
    """Of several steps that of which is told: the last that shared most."""
    found: Ran = max(reversed([*ran]), key=lambda step: STRENGTH[step.kind])
    return found


class Choice(NamedTuple):
    """What a step runs on.

    Attributes:
        run: runs it; None: DGL's own code is to run. It raises `LeftToDGL` where that turns out
            only once work was done.
        reason: why, in words.
    """

    run: Callable[[], Ran] | None
    reason: str


class LeftToDGL(Exception):
    """DGL's own code is to run after all. Its text says why."""


def stored(choice: Choice, field: str) -> Choice:
    """The choice for rows as that for a step that stores them in a field."""
    run = choice.run
    if run is None:
        return choice

    def step() -> Ran:
        rows, kind, reason = run()
        return Ran({field: rows}, kind, reason)

    return Choice(step, choice.reason)
