"""`hag-plugin demo`: stock beside accelerated."""

from __future__ import annotations

import argparse
import importlib
from typing import Any

import torch

from hag_plugin.cli.options import GRAPH_HELP, add_command, add_source, load, positive
from hag_plugin.cli.output import print_result
from hag_plugin.hag.program import METHODS
from hag_plugin.progress import shares


def add(commands: Any) -> None:
    """Adds `demo` to the commands."""
    parser = add_command(
        commands,
        "demo",
        run,
        "Train a 2-layer GCN twice, stock PyG or DGL and accelerated, and compare. Both start from "
        "the same weights and see the same batches; they take turns epoch by epoch, stock first, "
        "each in a process of its own. Seconds an epoch: the median, without the first (warm-up). "
        "The first search on a machine measures it for about a second: no part of the search time. "
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
    add_source(parser)
    parser.add_argument("--hidden", type=positive, default=64, help="width of layers (default 64)")
    parser.add_argument(
        "--epochs", type=positive, help="default 15; 100 where nodes are classified"
    )
    parser.add_argument("--batch-size", type=positive, default=32, help="graphs (default 32)")
    parser.add_argument("--method", choices=METHODS, default="auto", help="search (default auto)")
    parser.add_argument("--plot", metavar="FILE.png", help="losses and seconds as a picture "
                        "(needs matplotlib)")  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Trains both sides, and says how they compare."""
    from hag_plugin.demo import compare
    from hag_plugin.demo.side import FRAMEWORKS, Settings

    importlib.import_module(FRAMEWORKS[args.framework][1])  # says now if it is not installed
    if args.plot:
        compare.check_plot(args.plot)
    data = load(args, args.dataset, features=True)
    settings = Settings(
        hidden=args.hidden,
        epochs=args.epochs or (15 if data.labels_graphs else 100),
        batch_size=args.batch_size,
        seed=args.seed,
        threads=torch.get_num_threads(),
        method=args.method,
        framework=args.framework,
    )
    with shares("starting", not args.quiet) as report:
        result = compare.compare(data, settings, lambda words, share: report(share, words))
    if args.plot:
        compare.plot(result, args.plot)
    print_result(args, result.as_dict(), compare.table(result))
