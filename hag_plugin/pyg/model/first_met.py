"""What a graph that is met first runs on, where that pays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hag_plugin.devices import kind_of
from hag_plugin.hag.passing import Messages, runs_launches
from hag_plugin.pyg.model import session as sessions
from hag_plugin.pyg.recipes.adjacency import num_entries
from hag_plugin.pyg.recipes.recipe import PAIRS, Call, Recipe
from hag_plugin.pyg.recipes.rgat import attends_within, matrix_numbers

_WIDE = 256  # bytes of a row, where features do not tell


def first_met(
    conv: Any,
    recipe: Recipe,
    call: Call,
    edge_index: Tensor,
    size: tuple[int, int],
    make: Callable[[bool], Any],
    graphs: int = 1,
    features: Any = None,
    on_device: bool = False,
) -> Callable[[], Any]:
    """What makes a graph that is met first, where that pays; None otherwise.

    Args:
        make: makes it; whether the reverse, too.
        graphs: how many graphs that is.
        features: of both sides, where the call has them by type.
        on_device: whether it is made where the edges are, wherever that is.
    """
    derived = torch.is_grad_enabled()  # asked here: what is kept is made without gradients

    def passing() -> Any:
        given = features
        if given is None:
            given = call.get(recipe.record.features or recipe.source)
        pair = given[:2] if isinstance(given, PAIRS) else (given, given)
        home = edge_index.device
        if not (edge_index.is_cpu or (on_device and runs_launches(edge_index))):
            return None
        if not are_rows(conv, pair, call.get("size"), size, home):
            return None
        x, row_bytes = pair[0], row_bytes_of(conv, pair[0])
        weighted = recipe.scale(conv) is not None or call.get("edge_weight") is not None
        messages = Messages(num_entries(edge_index), size, row_bytes, derived, graphs, weighted,
                            device=kind_of(home).name)  # fmt: skip
        if recipe.scores(conv):
            messages = with_scores(conv, recipe, messages, x)
        if not messages.pays():
            return None
        both = derived or recipe.returns or conv.flow != "source_to_target"
        return sessions.made(lambda: make(both))

    return passing


def with_scores(conv: Any, recipe: Recipe, messages: Messages, x: Tensor) -> Messages:
    """The messages of a layer that scores them: of its own width, and over its loops, too."""
    heads, numbers = recipe.numbers(conv, x)
    loops = min(messages.size) if recipe.record.self_loops(conv) else 0
    if recipe.record.relations is not None:
        # Within relations stock goes from one to the next, too, and takes longer over it.
        count = 1 if attends_within(conv) else recipe.record.relations(conv) or 1
        messages = messages._replace(relations=count, matrix=matrix_numbers(conv))
    return messages._replace(
        num_edges=messages.num_edges + loops,
        row_bytes=x.element_size() * numbers,
        weighted=False,
        heads=heads,
        whole=recipe.whole(conv),
    )


def row_bytes_of(conv: Any, x: Tensor | None) -> int:
    """Of a row of features."""
    if x is None or not x.is_floating_point():
        return _WIDE
    return int(x.element_size() * x.shape.numel() // max(x.shape[conv.node_dim], 1))


def are_rows(
    conv: Any, pair: Sequence[Any], given: Any, size: tuple[int, int], home: torch.device
) -> bool:
    """Whether features are rows on a device, as many as the sizes say that a call gave. Where they
    are not, stock says so in its own words."""
    for x, rows in zip(pair, size, strict=True):
        if x is None:
            continue
        if not isinstance(x, Tensor) or x.device != home:
            return False
        if x.dim() < 2 and x.is_floating_point():
            return False
        if given is not None and x.shape[conv.node_dim] != rows:
            return False
    return True
