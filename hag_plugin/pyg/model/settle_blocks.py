"""`settle_blocks`: whether a call of `propagate` computes its messages in blocks of edges, and why
not. Asked where no HAG serves, for layers whose messages are made of both ends, or of what an edge
has of its own."""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hag_plugin.hag.edge_blocks import EdgeBlocks
from hag_plugin.limits import limits
from hag_plugin.ops.message_blocks import Messages, aggregate_in_blocks
from hag_plugin.ops.registration import is_transformed
from hag_plugin.pyg.model.choice import NOT_ACCELERATED, NOTHING, Choice
from hag_plugin.pyg.model.facts import why_not_as_set_up
from hag_plugin.pyg.recipes.forms import FORMS
from hag_plugin.pyg.recipes.in_blocks import EdgeRecipe, Given
from hag_plugin.pyg.recipes.recipe import PAIRS, Recipe, stock_class
from hag_plugin.pyg.recipes.rowwise import are_watched

# Why, in words.
IN_BLOCKS = "in blocks of edges: {}"
ITS_OWN = "its message, block by block"
LEANER = "linear layers on nodes, the rest of its message block by block"
LARGE = "large calls run in blocks of edges"
NOT_HERE = "no blocks of edges: {}"
FEW_EDGES = "few messages: stock is as fast"
OTHER_ARGUMENTS = "other arguments than dense rows of nodes and edges on the CPU"
WATCHED = "hooks on all modules see the stock computation"
TRANSFORMED = "autocast, or a transform of torch.func"

_here = threading.local()  # what became of a layer's last call of `propagate`, until `taken` asks


class InBlocks(NamedTuple):
    """A call that is computed in blocks of edges.

    Attributes:
        messages: what is computed.
        graph: the edges.
        reason: in words.
    """

    messages: Messages
    graph: EdgeBlocks
    reason: str

    def run(self) -> Tensor:
        """What `propagate` returns."""
        return aggregate_in_blocks(self.messages, self.graph, limits.block_bytes)


def settle_blocks(conv: Any, edge_index: Tensor, size: Any, values: dict[str, Any]) -> Any:
    """`InBlocks`, or why not, in words.

    Args:
        conv: an accelerated layer whose class has a form.
        edge_index: that `propagate` was given.
        size: likewise.
        values: the other arguments of `propagate`, by name.
    """
    session, num_edges = conv.__dict__.get("_hag_session"), edge_index.shape[-1]
    if session is None:
        return NOT_ACCELERATED
    if num_edges < limits.block_edges:
        return FEW_EDGES
    if not edge_index.is_cpu or edge_index.layout != torch.strided:
        return OTHER_ARGUMENTS
    recipe = FORMS[type(conv)._hag_stock]
    reason = why_no_blocks(conv, recipe)
    if reason is not None:
        return reason
    if torch.is_autocast_enabled("cpu") or is_transformed():
        return TRANSFORMED
    given = _given(conv, recipe, edge_index, size, values)
    if given is None:
        return OTHER_ARGUMENTS
    found = recipe.messages(conv, given)
    if found is None:
        return OTHER_ARGUMENTS
    messages, is_own = found
    if num_edges * messages.width < limits.block_messages:
        return FEW_EDGES
    graph = _blocks_of(session, edge_index, given)
    if graph is None:
        return OTHER_ARGUMENTS  # ids out of range: stock says so in its own words
    return InBlocks(messages, graph, IN_BLOCKS.format(ITS_OWN if is_own else LEANER))


def run_blocks(conv: Any, edge_index: Tensor, size: Any, values: dict[str, Any]) -> Tensor | None:
    """What `propagate` returns, computed in blocks of edges; None where stock's code is to run."""
    choices: dict[int, Choice] = _here.__dict__.setdefault("choices", {})
    choices.pop(id(conv), None)
    found = settle_blocks(conv, edge_index, size, values)
    if not isinstance(found, InBlocks):
        if found is not FEW_EDGES:
            choices[id(conv)] = Choice("stock", NOT_HERE.format(found), NOTHING)
        return None
    out = found.run()
    choices[id(conv)] = Choice("blocks", found.reason, NOTHING)
    return out


def taken(conv: Any, settled: Choice) -> Choice:
    """What a call of a layer ran on: as settled, unless its `propagate` found something else."""
    if torch.compiler.is_compiling():
        return settled
    choices: dict[int, Choice] = _here.__dict__.get("choices") or {}
    found = choices.pop(id(conv), None)
    if found is None:
        return settled
    return (
        found
        if found.kind == "blocks"
        else found._replace(reason=f"{settled.reason}; {found.reason}")
    )


def why_no_blocks(conv: Any, recipe: EdgeRecipe) -> str | None:
    """Why a layer, as it is set up now, computes nothing in blocks. None: it may."""
    reason = why_not_as_set_up(conv, Recipe())
    if reason is None and are_watched():
        reason = WATCHED
    return recipe.why_stock(conv) if reason is None else reason


def _given(
    conv: Any, recipe: EdgeRecipe, edge_index: Tensor, size: Any, values: dict[str, Any]
) -> Given | None:
    """The arguments with the sizes that `MessagePassing._collect` finds; None: they differ, or
    nodes are not the first dimension."""
    if edge_index.dim() != 2 or edge_index.shape[0] != 2:
        return None
    if edge_index.dtype not in (torch.int32, torch.int64):
        return None
    counts: list[Any] = list(size) if size is not None else [None, None]
    side = 0 if conv.flow == "source_to_target" else 1
    for name in recipe.takes:
        if name[-2:] not in ("_i", "_j"):
            continue
        value: Any = values.get(name[:-2])
        is_pair = isinstance(value, PAIRS)
        if is_pair and (len(value) != 2 or (side == 1 and value[0] is not value[1])):
            return None  # PyG's generated code lifts x[0] here, its Python code x[1]
        for n, rows in enumerate(value if is_pair else (value, value)):
            if rows is None:
                continue
            if not isinstance(rows, Tensor) or not rows.dim() or conv.node_dim % rows.dim():
                return None
            if not is_pair and (n == side) != (name[-2:] == "_j"):
                continue
            if counts[n] is None:
                counts[n] = len(rows)
            elif counts[n] != len(rows):
                return None
    i, j = counts[1 - side], counts[side]
    found = (j if j is not None else i, i if i is not None else j)
    if found[0] is None:
        return None
    return Given(values, found, edge_index.shape[1], side)


def _blocks_of(session: Any, edge_index: Tensor, given: Given) -> EdgeBlocks | None:
    """The edges in the order of their targets, kept for as long as they are the same."""
    about = ("blocks", given.size, given.side)
    known: EdgeBlocks | None = session.verdicts.get((edge_index,), about)
    if known is not None:
        return known
    edges = edge_index.detach()
    try:
        found = EdgeBlocks(edges if given.side == 0 else edges.flip(0), given.size)
    except ValueError:
        return None
    session.verdicts.put((edge_index,), about, found)
    return found


def in_words(conv: Any) -> str:
    """What `explain` says of a layer before it is called; "" where its class has no form."""
    recipe = FORMS.get(stock_class(conv))
    if recipe is None:
        return ""
    reason = why_no_blocks(conv, recipe)
    return LARGE if reason is None else NOT_HERE.format(reason)
