"""`Choice`: what a call of a layer runs on, and why, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from hag_plugin.explanation import Kind

# Why, in words.
PASSED = "a HAG was passed"
TREE_PASSED = "a prefix tree was passed"
BACK = "its graph came back"
FACTORS = "its graph came back, with edge weights that are products of node factors"
NO_FACTORS = "edge weights are learned, or not a product of node factors"
FEW = "few messages in training: stock is as fast"
MET = "first met: its rows are summed as they are"
MET_WEIGHTS = "first met: its rows are summed as they are, with its edge weights"
MET_FEW = "first met, with few messages: stock is as fast"
STRANGER = "few messages, and of the graphs before it none came back: stock is as fast"
FIRST = "first met: a graph gets its HAG when it comes back in a later forward"
MANY_MET = "too many edges to search in training: its rows are summed as they are; call build_hag"
COMPILED = "compiled with an edge_index that only stock's code takes here: pass a HAG"
COMPILED_PLAIN = "compiled with an edge_index: the plain graph, and its HAG once it came back"
COMPILED_BARE = "compiled with edge weights that it does not normalise: stock is as fast"
COMPILED_WEIGHTS = "compiled with an edge_index: the plain graph, with its edge weights"
SPARSE = "sparse adjacency: pass edge_index or a HAG"
SORTED = "first met: stock's product with a sorted EdgeIndex is as fast"
SPARSE_FEW = "first met: stock's product with a sparse adjacency is as fast"
OTHER_TENSOR = "{}: only plain tensors are known again"
NO_EDGES = "no edge index of shape [2, E]"
INFERENCE = "a tensor made in inference mode is not known again"
MANY = "too many edges to search in training: call build_hag"
NOT_ACCELERATED = "not accelerated"
FILLS = "cached=True: stock keeps the graph of this call"
OTHER_CACHE = "cached=True: it runs the graph of its first call"
ONE_VALUE = "{} has a value for each edge"
OTHER_WEIGHTS = (
    "edge weights of another shape than [E], or with an aggregation that is no sum or mean"
)
NO_TYPES = "edge_type is no tensor"
NOT_TAKEN = "the features are not dense tensors of a floating dtype"
TWO_SIDES = "flow='target_to_source' with two sets of nodes is left to stock"
NO_ROWS = "features are not rows of nodes"
LSTM_FEATURES = "the features are no dense matrix of a floating dtype on the CPU, or autocast"
SCORED = "attention in one pass over its edges: no messages are made"
SCORED_PASSED = "a HAG was passed; attention in one pass over its edges: no messages are made"
SCORED_FEW = "attention with few edges for its nodes and relations: stock is as fast"
SCORED_ELSEWHERE = "attention on a device without kernels for it"
SCORED_COMPILED = "attention in compiled code over what is no plain edge_index"
TYPED_COMPILED = "attention in compiled code over pairs of nodes and relations, told by no shape"
UNCHECKED_COMPILED = "declared attention in compiled code: call the layer once before, to check it"
EXPORTED = "attention in code that may have to run without hag_plugin"
UNTRACED = "attention between two parts of compiled code: no compiler traces stock's in one"
RETURNS_SCORES = "return_attention_weights: it returns a value for each edge"
OTHER_EDGES = "edge_type or edge_attr has other rows than the edges"
NO_LISTS = "there are no edges"
LSTM_SLOW = "the LSTM is as fast without the prefix tree of this graph"


class Choice(NamedTuple):
    """What a call runs on.

    Attributes:
        kind: "stock"; or "HAG" or "plain", where a HAG, a prefix tree or a graph with weights is
            given to the recipe. Whether a HAG's program shares sums is told after the call, when it
            is there.
        reason: why, in words.
        changed: the arguments to replace: a tensor by its HAG, or a HAG that cannot be used by its
            edges.
    """

    kind: Kind
    reason: str
    changed: Mapping[str, Any]


NOTHING: Mapping[str, Any] = {}
