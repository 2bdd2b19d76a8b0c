"""`hag-plugin simulate`: the timeline of a plan, and plans sampled by it."""

from __future__ import annotations

import argparse
from dataclasses import asdict
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
from hag_plugin.cli.options import add_command, amount, natural
from hag_plugin.cli.output import print_result
from hag_plugin.files import check_output
from hag_plugin.parallel.report.chrome_trace import write_chrome_trace
from hag_plugin.parallel.report.timeline_plot import check_timeline_path, plot_timeline
from hag_plugin.parallel.search.network import NetworkPlan, NetworkSpace
from hag_plugin.parallel.search.plan import Plan
from hag_plugin.parallel.search.planner import plan, space_of
from hag_plugin.parallel.simulation.mcmc import Budget
from hag_plugin.parallel.simulation.plan_tasks import simulate_plan
from hag_plugin.parallel.simulation.refine import Refined, refine
from hag_plugin.parallel.simulation.simulator import Schedule, critical_path

EXAMPLES = [
    "gcn cora.npz --topology pcie4x4 --plot timeline.svg",
    "sage --nodes 2400000 --edges 120000000 --features 100 --trace trace.json",
    "gcn cora.npz --plan plan.json --proposals 2000 -o better.json",
    "train.py:model --inputs 64x3x224x224 64:int64 --plan plan.json --plot timeline.svg",
]


def add(commands: Any) -> None:
    """Adds `simulate` to the commands."""
    parser = add_command(
        commands,
        "simulate",
        run,
        "Simulate one training step of a plan, with communication and computation side by side. "
        "With --proposals or --seconds, look for a plan of a model on a graph that is faster when "
        "simulated. All figures are predicted. Without --plan, the exact optimum of the additive "
        "cost is taken.",
        EXAMPLES,
    )
    parser.add_argument("model", help=MODEL_HELP)
    parser.add_argument("graph", nargs="?", help="as for plan")
    parser.add_argument("--plan", metavar="FILE.json", help="plan file")
    add_graph(parser)
    add_inputs(parser)
    parser.add_argument("--trace", metavar="FILE.json", help="timeline to write, for Perfetto or "
                        "chrome://tracing")  # fmt: skip
    parser.add_argument("--plot", metavar="FILE.svg", help="timeline as a picture, .svg, .png or "
                        ".pdf (needs matplotlib)")  # fmt: skip
    parser.add_argument("--proposals", type=natural, metavar="N", help="of MCMC, at most")
    parser.add_argument("--seconds", type=amount, metavar="S", help="of MCMC, at most")
    parser.add_argument("--seed", type=natural, default=0, help="of MCMC (default 0)")
    parser.add_argument("-o", "--output", metavar="FILE.json", help="plan to write")


def run(args: argparse.Namespace) -> None:
    """Simulates, samples if asked to, and writes what was asked for."""
    with in_words():
        if args.trace:
            check_output(args.trace, (".json",), "file")
        if args.plot:
            check_timeline_path(args.plot)
        if args.output:
            check_output(args.output, (".json",), "file")
        budget = None
        if args.proposals is not None or args.seconds is not None:
            budget = Budget(args.proposals, args.seconds)
        graph = graph_of(args)
        found: Plan | NetworkPlan
        if args.plan:
            found = plan_in(args.plan)
            check_plan(found, graph)
        else:
            found = plan(graph, topology=args.topology, world_size=args.devices, costs=args.costs)
        space = space_of(graph, args.topology, found.world_size, args.costs)
        refined = None
        if budget is not None:
            if isinstance(found, NetworkPlan) or isinstance(space, NetworkSpace):
                raise ValueError(
                    f"{graph.model} is a model without a graph; expected one on a graph for "
                    "--proposals or --seconds"
                )
            refined = refine(found, space, budget, seed=args.seed, progress=not args.quiet)
            found = refined.plan
        schedule = simulate_plan(found, space)
        title = f"{graph.model} on {found.topology} (predicted)"
        if args.trace:
            write_chrome_trace(schedule, args.trace, title)
        if args.plot:
            plot_timeline(schedule, args.plot, title)
        if args.output:
            found.save(args.output)
    written = [name for name in (args.trace, args.plot, args.output) if name]
    result = _result(found, schedule, refined) | {"written": written}
    print_result(args, result, _text(graph.model, found, schedule, refined, written))


def _result(
    found: Plan | NetworkPlan, schedule: Schedule, refined: Refined | None
) -> dict[str, Any]:
    sampled = None
    if refined is not None:
        search = asdict(refined.search)
        kept = ("proposals", "accepted", "seconds", "best_start", "start_costs", "history")
        sampled = {
            "additive_seconds": refined.additive,
            "simulated_seconds": refined.simulated,
            "sampled_seconds": refined.sampled,
            "search": {key: search[key] for key in kept},
        }
    return {
        "labels": "all seconds but the search's own are predicted",
        "plan": found.as_dict(),
        "additive_seconds": found.seconds,
        "simulated_seconds": schedule.makespan,
        "critical_path_seconds": critical_path(schedule.graph),
        "tasks": schedule.graph.num_tasks,
        "busy_seconds": schedule.busy(),
        "seconds_by_kind": schedule.seconds_by_kind(),
        "mcmc": sampled,
    }


def _text(
    model: str,
    found: Plan | NetworkPlan,
    schedule: Schedule,
    refined: Refined | None,
    written: list[str],
) -> str:
    whole = schedule.makespan or 1.0
    busy = list(schedule.busy().values())
    devices, links = busy[: found.world_size], max(busy[found.world_size :], default=0.0)
    lines = [
        f"{model} on {found.topology}, one training step (predicted)",
        f"  additive cost   {found.seconds * 1e3:10.4g} ms",
        f"  simulated       {schedule.makespan * 1e3:10.4g} ms, {schedule.graph.num_tasks} tasks",
        f"  critical path   {critical_path(schedule.graph) * 1e3:10.4g} ms",
        f"  devices work    {sum(devices) / len(devices) / whole:10.0%} of the time",
        f"  busiest link    {links / whole:10.0%}" if links else "  no link is used",
    ]
    apart = ("forward", "backward") if isinstance(found, NetworkPlan) else ()
    lines += [
        f"  {kind:<15} {seconds * 1e3:10.4g} ms{', of all devices together' * (kind in apart)}"
        for kind, seconds in schedule.seconds_by_kind().items()
        if seconds
    ]
    if refined is not None:
        lines.append(f"  {refined}")
    lines += [f"written to {name}" for name in written]
    return "\n".join(lines)
