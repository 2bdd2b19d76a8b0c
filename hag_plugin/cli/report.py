"""`hag-plugin report`: one page about a graph and its HAG, and a model on it, to look at."""

from __future__ import annotations

import argparse
import tempfile
from html import escape
from pathlib import Path
from typing import Any

import torch

from hag_plugin import files
from hag_plugin.cli.models import MODEL_HELP, add_sizes, in_words, model_of, widths_of
from hag_plugin.cli.options import GRAPH_HELP, add_command, add_source, load
from hag_plugin.cli.output import print_result
from hag_plugin.cli.plot import draw_with_bar
from hag_plugin.cli.search import LOOPS, add_search, search
from hag_plugin.cli.stats import MATRICES, facts_of, rows_of_facts
from hag_plugin.cli.stats import in_words as in_words_of
from hag_plugin.data.graph_data import GraphData
from hag_plugin.notebook import html_page, html_table


def add(commands: Any) -> None:
    """Adds `report` to the commands."""
    parser = add_command(
        commands,
        "report",
        run,
        "Write one page about a graph and its HAG: what is shared, what runs at each width and "
        "what it takes, and a picture. With --model, also what each layer of a model runs on, and "
        "the seconds that it takes and was predicted to; with --plan, the plan's timeline. It "
        "fetches nothing when it is opened. Needs matplotlib.",
        [
            "karate -o karate.html",
            "graph.npz -o graph.html --self-loops fill",
            "cora.npz --model gcn --layers 2 -o gcn.html",
            "graph.npz --model train.py:model --plan plan.json -o model.html",
        ],
    )
    parser.add_argument("graph", help=GRAPH_HELP)
    parser.add_argument(
        "-o", "--output", required=True, metavar="FILE", help="page to write, .html"
    )
    add_source(parser)
    add_search(parser)
    parser.add_argument("--model", help=MODEL_HELP)
    add_sizes(parser)
    parser.add_argument("--plan", metavar="FILE.json", help="of the model on this graph")
    parser.add_argument("--topology", metavar="FILE", help="the plan's machine, where that is not "
                        "a built-in one")  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Searches the HAG and writes the page."""
    from hag_plugin.cli import picture
    from hag_plugin.pages import sections

    files.check_output(args.output, (".html",), "--output")
    mode = LOOPS[args.self_loops]
    with tempfile.TemporaryDirectory() as folder:
        drawing = str(Path(folder) / "drawing.svg")
        picture.check_output(drawing)
        data = load(args, args.graph, features=args.model is not None)
        of_model, seconds = _model_sections(args, data)
        hag = search(args, data, mode)
        drawn = draw_with_bar(args, data, hag, drawing)
        svg = Path(drawing).read_text()
    words = in_words_of(hag.stats(mode), hag)
    parts = [
        f"<p>{escape(words)}</p>",
        html_table([("graph", ""), *rows_of_facts(facts_of(data, hag))]),
        *sections.of_graph(hag, mode, MATRICES[args.self_loops]),
        "<h2>A picture</h2>",
        svg[svg.index("<svg") :],
        *of_model,
    ]
    page = html_page(f"{data.name}: its HAG", data.name, parts)
    files.write_whole(Path(args.output), page.encode())
    result = {"dataset": {"name": data.name, "source": data.source}, **drawn,
              "model": seconds, "output": args.output}  # fmt: skip
    print_result(args, result, f"{words} Written to {args.output}.")


def _model_sections(
    args: argparse.Namespace, data: GraphData
) -> tuple[list[str], dict[str, Any] | None]:
    """The parts about the model that was asked for, if one was, and what was measured."""
    from hag_plugin.pages import sections

    with in_words():
        if args.model is None:
            given = next((n for n in ("plan", "topology") if getattr(args, n) is not None), None)
            if given is not None:
                raise ValueError(f"--{given} is for a model; expected --model, too")
            return [], None
        features, classes = widths_of(args, data)
        model = model_of(args, features, classes)
        found = sections.of_model(
            model, _as_pyg(data, features, args.seed), plan=args.plan, topology=args.topology
        )
    name = f"<h2>The model: {escape(args.model)}</h2>"
    return [name, *found.parts], found.seconds.as_dict()


def _as_pyg(data: GraphData, features: int, seed: int) -> Any:
    """The graph as models of PyG's layers take it; features that it has not are random."""
    from torch_geometric.data import Data

    x = data.x
    if x is None:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(data.num_nodes, features, generator=generator)
    made = Data(x, data.edge_index, y=data.y)
    if data.graph_ptr is not None:
        sizes = data.graph_ptr.diff()
        made.batch = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    return made
