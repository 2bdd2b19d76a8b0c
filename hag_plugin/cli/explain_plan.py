"""`hag-plugin explain-plan`: a plan as a table, and what else there is."""

from __future__ import annotations

import argparse
from typing import Any

from hag_plugin.cli.models import (
    MODEL_HELP,
    add_graph,
    add_inputs,
    check_plan,
    graph_of,
    in_words,
    plan_in,
)
from hag_plugin.cli.options import add_command
from hag_plugin.cli.output import print_result
from hag_plugin.parallel.search.planner import alternatives, machine_of, recost
from hag_plugin.units import milliseconds

EXAMPLES = [
    "plan.json",
    "plan.json gcn cora.npz --topology a100x8",
    "plan.json train.py:model --inputs 64x3x224x224 64:int64",
]


def add(commands: Any) -> None:
    """Adds `explain-plan` to the commands."""
    parser = add_command(
        commands,
        "explain-plan",
        run,
        "Print a plan as a table. With the model and the graph it is checked and priced anew, and "
        "every layer's other strategies are listed with what they would cost, or why they are "
        "refused; of a model without a graph, the axes along which an operation may be split.",
        EXAMPLES,
    )
    parser.add_argument("plan", help="plan file")
    parser.add_argument("model", nargs="?", help=MODEL_HELP)
    parser.add_argument("graph", nargs="?", help="as for plan")
    add_graph(parser, topology=None)
    add_inputs(parser)


def verdict(seconds: float, least: float) -> str:
    """Whether a plan is the best there is, by the cost that it was priced by.

    Args:
        seconds: that it is predicted to take.
        least: that any plan does, memory left out of account.
    """
    if seconds <= least * (1 + 1e-9):
        return "No other plan is predicted to take less."
    return (
        f"Another plan is predicted to take {milliseconds(least)} ms ({seconds / least:.2f}x as "
        "fast), memory left out of account: `hag-plugin plan` finds the best that fits."
    )


def run(args: argparse.Namespace) -> None:
    """Prints a plan; with a model, checks it and lists what else there is."""
    others = None
    with in_words():
        found = plan_in(args.plan)
        if args.model is not None:
            graph, machine = graph_of(args), machine_of(found, args.topology)
            check_plan(found, graph)
            found = recost(found, graph, machine, args.costs)
            others = alternatives(found, graph, machine, args.costs)
    if others is None:
        print_result(args, {"plan": found.as_dict()}, str(found))
        return
    priced = [s for entries in others.values() for s in entries.values() if not isinstance(s, str)]
    lines = [
        str(found),
        verdict(found.seconds, min(priced, default=found.seconds)),
        "",
        "each layer's other strategies (predicted for the whole step, the rest of the plan "
        "adapted):",
    ]
    for layer, entries in others.items():
        lines.append(f"  {layer}")
        for name, seconds in sorted(entries.items(), key=lambda e: (isinstance(e[1], str), e[0])):
            told = seconds if isinstance(seconds, str) else f"{milliseconds(seconds)} ms"
            lines.append(f"    {name}: {told}")
    result = {"plan": found.as_dict(), "alternatives": others}
    print_result(args, result, "\n".join(lines))
