"""What became of the calls of a layer: `note` counts them, by what they ran on, for `explain`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.comptime import comptime
from torch.nn import Module

from hag_plugin.explanation import Calls, Kind
from hag_plugin.hag.hag import HAG
from hag_plugin.layers.pyg import reducers
from hag_plugin.modes import top_hooks
from hag_plugin.pyg.model.choice import (
    COMPILED,
    COMPILED_PLAIN,
    MET_FEW,
    SCORED_FEW,
    STRANGER,
    Choice,
)
from hag_plugin.pyg.model.facts import PARAMETERS, is_relations
from hag_plugin.pyg.recipes.recipe import Call, Recipe
from hag_plugin.pyg.recipes.weighted import WeightedGraph
from hag_plugin.recall import is_run_again
from hag_plugin.sequence.prefix_tree import SequentialHAG
from hag_plugin.strangers import Strangers

CALLS = "_hag_calls"  # in a layer: its `Calls`
OF_STRANGERS = {MET_FEW: STRANGER, SCORED_FEW: SCORED_FEW}  # and why those after them are left

# Outside of it, and without hooks, nothing is run again: asked here, for it is asked at every call.
_in_backward: Any = torch._C._current_graph_task_id


def note(conv: Any, recipe: Recipe | None, choice: Choice, call: Call) -> None:
    """Counts a call that is done, unless a checkpoint ran it again.

    In compiled code it is counted once, when it is compiled.
    """
    kind, reason, changed = choice
    if torch.compiler.is_compiling():
        if torch.compiler.is_dynamo_compiling():
            graph = None if recipe is None else call.get(recipe.record.graphs[0])
            comptime(_note_traced)
            del graph
        else:
            _note_compiled(conv, kind, reason)
        return
    if (_in_backward() >= 0 or top_hooks(True) is not None) and is_run_again():
        return
    calls = conv.__dict__.get(CALLS)
    if calls is None:
        calls = calls_of(conv)
    strangers = None
    if recipe is not None and reason in OF_STRANGERS:
        strangers = _strangers(conv, recipe, calls, call.get(recipe.record.graphs[0]), reason)
    calls.strangers = strangers
    if kind == "HAG" and recipe is not None:
        kind = "plain"
        for name in recipe.record.graphs:
            shares, why = _shares(conv, recipe, calls, changed.get(name, call.get(name)))
            if shares:
                kind = "HAG"
            if why:
                reason = choice.reason + why
    calls.counts[kind] = calls.counts.get(kind, 0) + 1  # as Calls.note
    calls.reasons[kind] = reason


def _strangers(
    conv: Any, recipe: Recipe, calls: Calls, graph: Any, reason: str
) -> Strangers | None:
    """What a layer left to stock, with this graph; None where it is to look at the next one."""
    strangers: Strangers | None = calls.strangers
    if strangers is None:
        name, names = recipe.record.graphs[0], getattr(type(conv), PARAMETERS, ())
        if name not in names:  # a declared layer, whose `propagate` is looked at
            return None
        strangers = Strangers(calls, name, names.index(name), _size)
    return strangers if strangers.met(graph, OF_STRANGERS[reason]) else None


def _size(graph: Any) -> int:
    return graph.numel() if type(graph) is Tensor else -1


def calls_of(conv: Any) -> Calls:
    """The calls of a layer so far."""
    calls: Calls | None = conv.__dict__.get(CALLS)
    if calls is None:
        calls = conv.__dict__[CALLS] = Calls()
    return calls


def say_instead(conv: Any, said: str, reason: str) -> None:
    """Gives the calls of a layer that is inside of another the reason that the outer one knows."""
    reasons = calls_of(conv).reasons
    for kind in reasons:
        if reasons[kind] == said:
            reasons[kind] = reason


def _note_traced(context: Any) -> None:
    """The same, run by the compiler where it traces `note`: of this, nothing is left in its code.

    Neither the layer nor its count is looked at by what is compiled, so that no guard is on them.
    """
    variables = [
        getattr(context.get_local(name), "_ComptimeVar__variable", None)
        for name in ("conv", "kind", "reason", "recipe", "graph")
    ]
    conv, kind, reason, recipe, graph = map(_value_of, variables)
    if not isinstance(conv, Module):  # this version of torch keeps it elsewhere
        return
    if kind == "HAG" and isinstance(recipe, Recipe):
        graphs = graph if isinstance(graph, list) else [graph]
        if all(type(each) is HAG for each in graphs):
            kind, reason = _known_now(conv, recipe, graphs, str(reason))
    _note_compiled(conv, kind, reason)


def _note_compiled(conv: Any, kind: Any, reason: Any) -> None:
    tells = reason in (COMPILED, COMPILED_PLAIN)
    calls_of(conv).note(kind, reason if tells else f"compiled: {reason}")


def _shares(conv: Any, recipe: Recipe, calls: Calls, graph: Any) -> tuple[bool, str]:
    """Whether one of the programs that ran on a graph shares sums; and why the last one ran."""
    if isinstance(graph, HAG):
        graph = graph._made()
        turned = conv.flow != "source_to_target"
        loops, graphs, why = recipe.record.self_loops(conv), [], ""
        if not turned or recipe.returns:
            graphs.append(graph)
        if turned or recipe.returns:
            graphs.append(graph.transpose())
        for each in graphs:
            for idempotent in _idempotents(conv, calls):
                ran = each._ran.get((loops, idempotent)) or each.ran(loops, idempotent)
                if ran is not None:
                    why = ran.why
                    if not ran.program.is_plain:
                        return True, why
        return False, why
    if is_relations(graph):
        found = [_shares(conv, recipe, calls, hag) for hag in graph]
        return max(found, default=(False, ""))
    if isinstance(graph, WeightedGraph):
        ran = graph.hag.ran(False, False)
        return (False, "") if ran is None else (not ran.program.is_plain, ran.why)
    return isinstance(graph, SequentialHAG), ""


def _value_of(variable: Any) -> Any:
    """What stands for a variable of the compiler, or for each of a list; None: it does not say."""
    if variable is None:
        return None
    variable = variable.realize()
    try:
        return variable.value
    except (AttributeError, NotImplementedError):  # a list of what is no constant, or another kind
        items = getattr(variable, "items", None)
        return [_value_of(item) for item in items] if isinstance(items, list) else None


def _known_now(conv: Any, recipe: Recipe, graphs: Sequence[HAG], reason: str) -> tuple[Kind, str]:
    """What a call that is being compiled will run on, as far as its programs are there."""
    if conv.flow != "source_to_target" or recipe.returns:  # the reverse is not there
        return "HAG", reason
    calls, loops = calls_of(conv), recipe.record.self_loops(conv)
    keys = [(loops, each) for each in _idempotents(conv, calls)]
    if all(graph.ran(*key) for graph in graphs for key in keys):
        shares = any(_shares(conv, recipe, calls, graph)[0] for graph in graphs)
        return ("HAG" if shares else "plain"), reason
    return "HAG", f"{reason}, whose program is chosen when it runs"


def _idempotents(conv: Any, calls: Calls) -> tuple[bool, ...]:
    """Of which kinds the programs of a layer are: for sums, False; for extrema, True."""
    module = conv._modules["aggr_module"]
    known = calls.known  # as long as the layer aggregates with this module
    if known is None or known[0] is not module:
        kinds = tuple({name in ("max", "min") for name in reducers(conv)})
        known = calls.known = module, kinds
    found: tuple[bool, ...] = known[1]
    return found
