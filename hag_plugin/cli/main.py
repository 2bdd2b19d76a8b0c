"""The command line: demo, stats, build, plot, calibrate; plan, explain-plan, probe, simulate.

Results go to stdout, progress and messages to stderr. Exit codes: 0 done; 1 a check or a run
failed; 2 the input was wrong; 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import hag_plugin as hp
from hag_plugin import constants, files
from hag_plugin.cli import calibration
from hag_plugin.cli.options import FILE_HELP, add_ids
from hag_plugin.data import datasets, graph_files
from hag_plugin.data.graph_data import GraphData
from hag_plugin.files import DatasetError
from hag_plugin.hag import HAG
from hag_plugin.occupancy import Occupancy
from hag_plugin.program import METHODS, SELF_LOOPS, SelfLoops, Stats
from hag_plugin.starting import hand_over, interrupted

LOOPS: dict[str, SelfLoops] = {str(mode) if mode else "none": mode for mode in SELF_LOOPS}
PACKAGES = ("hag-plugin", "torch", "torch_geometric", "dgl", "numpy")
GRAPH_HELP = (
    f"a built-in graph ({', '.join(datasets.BUILT_IN)}); {FILE_HELP}; with "
    "--root, a TU or Planetoid name (MUTAG, Cora, ...) or the name of an .npz in it"
)


class CheckError(RuntimeError):
    """A HAG does not compute its graph."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code."""
    parser = _parser()
    try:
        args = parser.parse_args(arguments)
    except SystemExit as e:  # argparse has said what was wrong
        return int(e.code or 0)
    try:
        hand_over()
        if args.threads is not None:
            torch.set_num_threads(args.threads)
        args.run(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return interrupted()
    except BrokenPipeError:  # the reader of stdout has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (DatasetError, constants.CostsError, ImportError, OSError) as e:
        print(f"hag-plugin {args.command}: {_words(e)}", file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as e:
        print(f"hag-plugin {args.command}: {_words(e)}", file=sys.stderr)
        return 1
    return 0


def _words(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    if isinstance(error, ImportError) and "torch_geometric" in str(error):
        return 'the demo needs PyG: pip install "hag-plugin[demo]"'
    if isinstance(error, ImportError) and error.name == "dgl":
        return 'the demo with --framework dgl needs DGL: pip install "hag-plugin[dgl]"'
    return str(error) or type(error).__name__


# Arguments --------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hag-plugin",
        description="Graph neural networks that sum shared neighbours once, with the same results.",
        epilog="`hag-plugin COMMAND --help` shows the options and examples of a command.",
    )
    parser.add_argument("--version", action="version", version=f"hag-plugin {hp.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_stats(commands)
    _add_build(commands)
    _add_plot(commands)
    _add_parallel(commands)
    _add_calibrate(commands)
    return parser


def _command(commands: Any, name: str, run: Any, words: str, examples: Sequence[str]) -> Any:
    epilog = "examples:\n" + "\n".join(f"  hag-plugin {name} {e}".rstrip() for e in examples)
    parser = commands.add_parser(
        name,
        help=words.partition(".")[0],
        description=textwrap.fill(words, 90),
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    parser.add_argument("--threads", type=_positive, metavar="N", help="threads that torch may use")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def _add_source(parser: Any) -> None:
    parser.add_argument("--root", metavar="DIR", help="folder of TU, Planetoid or .npz datasets")
    parser.add_argument(
        "--seed", type=_natural, default=0, help="of all that is random (default 0)"
    )
    parser.add_argument(
        "--graphs", type=_positive, metavar="N", help="ego-networks to generate (default 1000)"
    )
    add_ids(parser)


def _add_search(parser: Any) -> None:
    parser.add_argument(
        "--self-loops",
        choices=sorted(LOOPS),
        default="none",
        help="none: the graph as given (default); add: A + I; fill: exactly one loop a node",
    )
    parser.add_argument("--method", choices=METHODS, default="auto", help="search (default auto)")
    parser.add_argument(
        "--allow-subtraction",
        action="store_true",
        help="aggregate A as A + I minus the node itself: cheaper, but a NaN, an Inf or a huge "
        "value in a node's own row then spoils its result",
    )
    parser.add_argument(
        "--width", type=_positive, default=64, help="features that the price is for (default 64)"
    )
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="that the price is for (default cpu); cuda needs no GPU here",
    )
    parser.add_argument("--check", action="store_true", help="expand the HAG and compare all edges")
    parser.add_argument("--json", action="store_true", help="results as JSON on stdout")


def _add_demo(commands: Any) -> None:
    parser = _command(
        commands,
        "demo",
        _demo,
        "Train a 2-layer GCN twice, stock PyG or DGL and accelerated, and compare. Both start from "
        "the same weights and see the same batches; they take turns epoch by epoch, stock first, "
        "each in a process of its own. Seconds an epoch: the median, without the first (warm-up). "
        "Peak memory: growth of the process's resident memory over search and training, once the "
        "data is loaded.",
        [
            "",
            "--dataset digits",
            "--dataset MUTAG --root data --hidden 32 --epochs 50",
            "--graphs 300 --epochs 5 --json > demo.json",
            "--framework dgl",
        ],
    )
    parser.add_argument(
        "--dataset", default="collaboration", metavar="GRAPH",
        help="default collaboration, generated ego-networks of authors in three fields. May be "
        f"{GRAPH_HELP}",
    )  # fmt: skip
    parser.add_argument(
        "--framework", choices=("pyg", "dgl"), default="pyg", help="of both sides (default pyg)"
    )
    _add_source(parser)
    parser.add_argument("--hidden", type=_positive, default=64, help="width of layers (default 64)")
    parser.add_argument(
        "--epochs", type=_positive, help="default 15; 100 where nodes are classified"
    )
    parser.add_argument("--batch-size", type=_positive, default=32, help="graphs (default 32)")
    parser.add_argument("--method", choices=METHODS, default="auto", help="search (default auto)")
    parser.add_argument("--json", action="store_true", help="results as JSON on stdout")
    parser.add_argument("--plot", metavar="FILE.png", help="losses and seconds as a picture "
                        "(needs matplotlib)")  # fmt: skip


def _add_stats(commands: Any) -> None:
    parser = _command(
        commands,
        "stats",
        _stats,
        "What a graph is, and what a HAG saves on it. Counts are for one aggregation over one "
        "feature row a node, beside the plain graph.",
        [
            "cliques",
            "edges.txt --undirected --self-loops fill",
            "graph.npz --json",
            "graph.hag.npz",
        ],
    )
    parser.add_argument("graph", help=GRAPH_HELP)
    _add_source(parser)
    _add_search(parser)


def _add_build(commands: Any) -> None:
    parser = _command(
        commands,
        "build",
        _build,
        "Build the HAG of a graph and write it to a file. `hag_plugin.HAG.load` reads it.",
        ["edges.txt graph.hag.npz --self-loops fill", "graph.npz graph.hag.npz --check"],
    )
    parser.add_argument("graph", help=GRAPH_HELP)
    parser.add_argument("output", help="HAG file to write, .npz")
    _add_source(parser)
    _add_search(parser)


def _add_plot(commands: Any) -> None:
    parser = _command(
        commands,
        "plot",
        _plot,
        "Draw a small graph beside its HAG, with the shared sums in colour; how often sums are "
        "shared; and what the cost model says for more and more of them. Of a large graph a small "
        "part is drawn. Needs matplotlib.",
        ["karate -o karate.svg --self-loops fill", "graph.npz -o graph.png --method greedy"],
    )
    parser.add_argument("graph", help=GRAPH_HELP)
    parser.add_argument(
        "-o", "--output", required=True, metavar="FILE", help="picture to write, .svg or .png"
    )
    _add_source(parser)
    _add_search(parser)


def _add_parallel(commands: Any) -> None:
    from hag_plugin.cli import plan, simulate

    def printed(run: Any) -> Any:
        return lambda args: _print(args, **run(args))

    def adds(commands: Any, name: str, run: Any, words: str, examples: Sequence[str]) -> Any:
        return _command(commands, name, printed(run), words, examples)

    plan.add_plan(adds, commands)
    plan.add_explain(adds, commands)
    plan.add_probe(adds, commands)
    simulate.add_simulate(adds, commands)


def _add_calibrate(commands: Any) -> None:
    parser = _command(
        commands,
        "calibrate",
        _calibrate,
        "Measure the constants of the cost model on this machine, once. Every search reads them "
        "from then on: from the file that HAG_PLUGIN_COSTS names, or else from "
        "hag_plugin/costs.json in the user's configuration folder. Have nothing else run "
        "meanwhile.",
        ["", "--output costs.json --json"],
    )
    parser.add_argument("--output", metavar="FILE", help="where to write instead")
    parser.add_argument(
        "--rounds", type=_positive, default=15, metavar="N",
        help="runs of each program; the shortest counts (default 15)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="results as JSON on stdout")


def _positive(text: str) -> int:
    return _integer(text, 1)


def _natural(text: str) -> int:
    return _integer(text, 0)


def _integer(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"{text!r}; expected an integer, {least} or more")
    return value


# Commands ---------------------------------------------------------------------------------------


def _load(args: argparse.Namespace, name: str, features: bool) -> GraphData:
    data = datasets.load(
        name,
        args.root,
        num_graphs=args.graphs,
        seed=args.seed,
        features=features,
        relabel=args.relabel,
        undirected=args.undirected,
    )
    print(f"{data.name}: {data.source}", file=sys.stderr)
    return data


def _demo(args: argparse.Namespace) -> None:
    from hag_plugin.demo import compare
    from hag_plugin.demo.side import FRAMEWORKS, Settings

    importlib.import_module(FRAMEWORKS[args.framework][1])  # says now if it is not installed
    if args.plot:
        compare.check_plot(args.plot)
    data = _load(args, args.dataset, features=True)
    settings = Settings(
        hidden=args.hidden,
        epochs=args.epochs or (15 if data.labels_graphs else 100),
        batch_size=args.batch_size,
        seed=args.seed,
        threads=torch.get_num_threads(),
        method=args.method,
        framework=args.framework,
    )
    with tqdm(
        total=1.0,
        disable=args.quiet,
        leave=False,
        file=sys.stderr,
        bar_format="{desc:<32} {percentage:3.0f}% |{bar}| {elapsed} < {remaining}",
    ) as bar:

        def report(words: str, share: float) -> None:
            bar.set_description_str(words, refresh=False)
            bar.update(share - bar.n)

        result = compare.compare(data, settings, report)
    if args.plot:
        compare.plot(result, args.plot)
    _print(args, result.as_dict(), compare.table(result))


@dataclass(frozen=True)
class Facts:
    """What a graph is: edges are directed, duplicates counted."""

    nodes: int
    edges: int
    graphs: int
    duplicates: int
    self_loops: int
    isolated: int
    symmetric: bool


def _facts(data: GraphData, hag: HAG) -> Facts:
    source, target = hag.edge_index  # by target, then by source: duplicates are neighbours
    touched = torch.zeros(data.num_nodes, dtype=torch.bool)
    touched[source] = True
    touched[target] = True
    again = (source[1:] == source[:-1]) & (target[1:] == target[:-1])
    return Facts(
        nodes=data.num_nodes,
        edges=data.num_edges,
        graphs=data.num_graphs,
        duplicates=int(again.sum()),
        self_loops=int((source == target).sum()),
        isolated=int((~touched).sum()),
        symmetric=hag.is_symmetric,
    )


def _search(args: argparse.Namespace, data: GraphData, mode: SelfLoops) -> HAG:
    hag = hp.build_hag(
        data.edge_index,
        num_nodes=data.num_nodes,
        ptr=data.graph_ptr,
        method=args.method,
        self_loops=(),  # the search is yet to come
        allow_subtraction=args.allow_subtraction,
        width=args.width,
    )
    options = replace(hag.options, device=args.device)
    hag = HAG(hag.row_ptr, hag.col, hag.num_src, options=options)
    hag.program(mode, progress=False if args.quiet else None)
    _check(args, data, hag, mode)
    return hag


def _check(args: argparse.Namespace, data: GraphData, hag: HAG, mode: SelfLoops) -> None:
    if args.check:
        try:
            hag.check(data.edge_index, self_loops=mode)
        except ValueError as e:
            raise CheckError(f"the HAG does not compute its graph: {e}") from e


def _stats(args: argparse.Namespace) -> None:
    mode = LOOPS[args.self_loops]
    data = _load(args, args.graph, features=False)
    if graph_files.is_hag_file(args.graph):
        hag = HAG.load(args.graph)  # as it was searched: --method and the like have no say
        _check(args, data, hag, mode)
    else:
        hag = _search(args, data, mode)
    _report(args, data, hag, mode, {})


def _build(args: argparse.Namespace) -> None:
    mode = LOOPS[args.self_loops]
    output = Path(args.output)
    files.check_output(output, (".npz",))
    data = _load(args, args.graph, features=False)
    hag = _search(args, data, mode)
    hag.save(output)
    _report(args, data, hag, mode, {"output": args.output, "file_bytes": output.stat().st_size})


def _plot(args: argparse.Namespace) -> None:
    from hag_plugin.cli import picture

    picture.check_output(args.output)
    mode = LOOPS[args.self_loops]
    data = _load(args, args.graph, features=False)
    hag = _search(args, data, mode)
    with tqdm(
        total=1.0,
        disable=args.quiet,
        leave=False,
        delay=2.0,
        file=sys.stderr,
        bar_format="trying capacities {percentage:3.0f}% |{bar}| {elapsed} < {remaining}",
    ) as bar:
        drawn = picture.draw(data, hag, args.output, mode, lambda share: bar.update(share - bar.n))
    words = (
        f"{drawn['drawn_nodes']} nodes and {drawn['drawn_shared_sums']} shared sums drawn to "
        f"{args.output}; the whole graph has {drawn['shared_sums']:,} shared sums, each used "
        f"{drawn['mean_uses']:.1f} times on average."
    )
    _print(args, {"dataset": {"name": data.name, "source": data.source}, **drawn}, words)


def _calibrate(args: argparse.Namespace) -> None:
    path = Path(args.output) if args.output else constants.path_in_force()
    if path is None:
        raise DatasetError(
            f"{constants.PATH_VARIABLE} is empty, which stands for the defaults; expected a file "
            "in it, or --output FILE"
        )
    if not args.output:
        path.parent.mkdir(parents=True, exist_ok=True)
    files.check_output(path)
    with tqdm(
        total=1.0,
        disable=args.quiet,
        leave=False,
        file=sys.stderr,
        bar_format="calibrating: {percentage:3.0f}% |{bar}| {elapsed} < {remaining}",
    ) as bar:
        found = calibration.calibrate(args.rounds, report=lambda share: bar.update(share - bar.n))
    result = {"output": str(path), "digest": found.constants.digest, **asdict(found)}
    measured = result.pop("constants")
    about = {**result, "machine": _machine(), "versions": _versions()}
    constants.write_constants(path, found.constants, about)
    text = f"{calibration.table(found)} Written to {path}."
    _print(args, {**result, "constants": measured}, text)


def _report(
    args: argparse.Namespace, data: GraphData, hag: HAG, mode: SelfLoops, extra: dict[str, Any]
) -> None:
    """Prints what a graph is and what its HAG costs."""
    facts, stats = _facts(data, hag), hag.stats(mode)
    ratio = stats.predicted_seconds_before / stats.predicted_seconds
    profits = ratio > 1.0
    what = {"none": "A", "add": "A + I", "fill": "A with one loop a node"}[args.self_loops]
    if profits:
        words = f"The HAG profits: by the cost model, one aggregation costs {ratio:.2f}x less."
    else:
        words = "The HAG does not profit here: next to nothing is shared."
    if args.check:
        words += " Checked: it computes exactly this graph."
    if extra:
        words += f" Written to {extra['output']} ({extra['file_bytes']:,} bytes)."
    result = {
        "dataset": {"name": data.name, "source": data.source},
        "graph": asdict(facts),
        "settings": {"self_loops": args.self_loops, "method": args.method, "width": args.width,
                     "allow_subtraction": args.allow_subtraction,
                     "device": hag.options.device},
        "stats": asdict(stats),
        "predicted_ratio": ratio,
        "profits": profits,
        "checked": bool(args.check),
        **extra,
    }  # fmt: skip
    text = "\n".join([_facts_text(facts), "", _stats_text(stats, what), "", words])
    _print(args, result, text)


def _facts_text(facts: Facts) -> str:
    rows = [(key.replace("_", "-"), value) for key, value in asdict(facts).items()]
    return "\n".join(
        f"{key:<12}{('yes' if value else 'no') if isinstance(value, bool) else format(value, ',')}"
        for key, value in rows
    )


def _stats_text(stats: Stats, what: str) -> str:
    values = asdict(stats)
    lines = [f"{what:<24}{'plain graph':>16}{'HAG':>16}{'ratio':>10}"]
    for key in ("aggregations", "rows_read", "rows_written", "bytes"):
        before, after = values[f"{key}_before"], values[key]
        ratio = f"{before / after:.2f}x" if after else "-"
        lines.append(f"{key.replace('_', ' '):<24}{before:>16,}{after:>16,}{ratio:>10}")
    for key in ("intermediates", "tiles"):
        lines.append(f"{key:<24}{'-':>16}{values[key]:>16,}")
    lines.append(f"{'search, seconds':<24}{'-':>16}{stats.search_seconds:>16.3f}")
    return "\n".join(lines + _occupancy_lines(stats.gpu))


def _occupancy_lines(gpu: Occupancy | None) -> list[str]:
    if gpu is None:
        return []
    lines = [
        "",
        f"On a GPU of {gpu.multiprocessors} multiprocessors, in this order:",
        f"{'launch':<8}{'ops':>12}{'rows':>12}{'longest op':>12}{'width blocks':>14}"
        f"{'instances':>12}{'warps':>8}{'occupancy':>11}",
    ]
    for number, each in enumerate(gpu.launches):
        lines.append(
            f"{number:<8}{each.ops:>12,}{each.rows:>12,}{each.longest_op:>12,}"
            f"{each.width_blocks:>14,}{each.instances:>12,}{each.warps:>8}{each.occupancy:>11.1%}"
        )
    return [
        *lines,
        f"longest serial chain: {gpu.serial_chain:,} rows; scratch: {gpu.scratch_bytes:,} bytes",
    ]


def _print(args: argparse.Namespace, result: dict[str, Any], text: str) -> None:
    if not args.json:
        print(text)
        return
    document = {"command": args.command, **result, "machine": _machine(), "versions": _versions()}
    document["date"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
    print(json.dumps(document, indent=2, allow_nan=False))


def _machine() -> dict[str, Any]:
    return {
        "system": platform.system(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "threads": torch.get_num_threads(),
    }  # fmt: skip


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            line = next((line for line in file if line.startswith("model name")), "")
    except OSError:
        line = ""
    return line.partition(":")[2].strip() or platform.processor() or platform.machine()


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return versions
