"""DGL's `SAGEConv("lstm")` over the prefix tree of its graph.

DGL orders the messages of a node by edge id, runs nodes of one in-degree together, and gives 0 to
nodes without edges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from dgl.function.message import CopyMessageFunction
from torch import nn

from hag_plugin.dgl.aggregation.choice import NO_EDGES, UNFIT, UNKNOWN_MESSAGE, Choice, Ran
from hag_plugin.dgl.aggregation.relation import Relation, edge_index, num_nodes
from hag_plugin.dgl.aggregation.rows import is_taken, why_not_taken
from hag_plugin.modes import outside_inference
from hag_plugin.sequence.cost import (
    StepCounts,
    are_taken,
    bucketed_counts,
    describe,
    note_counts,
    why_not_shared,
)
from hag_plugin.sequence.lstm import lstm_aggregate
from hag_plugin.sequence.prefix_tree import SequentialHAG, build_sequence

MAILBOX = "m"  # the field that `SAGEConv._lstm_reducer` reads, and the one that it gives
RESULT = "neigh"

# Why, in words.
TREE = "its graph came back, and has a prefix tree"
FIRST_LISTS = "first met by this layer: an LSTM gets a prefix tree when its graph comes back"
SLOWER = "the LSTM is as fast without the prefix tree of this graph"
OTHER_FEATURES = "features of another dtype or width than the LSTM's, or autocast"
INITIALIZER = "nodes without edges get what an initializer gives"


@dataclass(frozen=True)
class Found:
    """The prefix tree of one edge type's lists, and its counts.

    Attributes:
        counts: of the tree.
        tree: None where there are no edges.
    """

    counts: StepCounts
    tree: SequentialHAG | None


def why_stock(conv: Any) -> str | None:
    """Why a `SAGEConv("lstm")` must run its stock code. None: it need not."""
    lstm = conv.lstm
    reason = why_not_shared(lstm)
    if reason is None and (lstm.num_layers > 1 or not lstm.batch_first):
        return "its LSTM was replaced by one of several layers, or with batch_first=False"
    return reason


def explained(conv: Any) -> tuple[bool, str]:
    """Whether a `SAGEConv("lstm")` runs over prefix trees, and why, for `explain`."""
    reason = why_stock(conv)
    return describe(conv.lstm) if reason is None else (False, reason)


def settle(
    graph: Any, etid: int, relation: Relation, message_func: Any, reduce_func: Any
) -> Choice:
    """For `update_all(copy_u, conv._lstm_reducer)`.

    The tree is built when a layer comes back to a graph, so that batches never wait for one.
    """
    conv = reduce_func.__self__
    if not isinstance(message_func, CopyMessageFunction) or message_func.name != "copy_u":
        return Choice(None, UNKNOWN_MESSAGE)
    source, target = graph._graph.metagraph.find_edge(etid)
    frame = graph._node_frames[source]
    if message_func.out_field != MAILBOX or message_func.in_field not in frame:
        return Choice(None, UNFIT)
    x = frame[message_func.in_field]
    if not is_taken(x):
        return Choice(None, why_not_taken(x))
    if not are_taken(conv.lstm, x):
        return Choice(None, OTHER_FEATURES)
    reason = why_stock(conv)
    if reason is not None:
        return Choice(None, reason)
    targets = graph._node_frames[target]
    if targets._default_initializer is not None or RESULT in targets._initializers:
        return Choice(None, INITIALIZER)  # nodes without edges get what the user wants
    tree = _tree(graph, etid, relation, conv.lstm)
    if isinstance(tree, str):
        return Choice(None, tree)

    def run() -> Ran:
        return Ran({RESULT: lstm_aggregate(x, tree, conv.lstm)}, "HAG", TREE)

    return Choice(run, TREE)


def _tree(graph: Any, etid: int, relation: Relation, lstm: nn.LSTM) -> SequentialHAG | str:
    """The prefix tree, or why there is none."""

    def make() -> Found:
        with outside_inference(), torch.no_grad():
            tree = build_sequence(edge_index(graph, etid), size=num_nodes(graph, etid))
        return Found(bucketed_counts(tree), tree if tree.num_edges else None)

    found: Found | None = relation.memory.value((), "lists", make, reader=lstm)
    if found is None:
        return FIRST_LISTS
    note_counts(lstm, found.counts)
    if found.tree is None:
        return NO_EDGES
    return found.tree if found.counts.pays(lstm) else SLOWER
