"""`hag-plugin report`: one page about a graph and its HAG, to look at."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from hag_plugin import files
from hag_plugin.cli.options import GRAPH_HELP, add_command, add_source, load
from hag_plugin.cli.output import machine, package_versions, print_result
from hag_plugin.cli.plot import draw_with_bar
from hag_plugin.cli.search import LOOPS, add_search, search
from hag_plugin.cli.stats import MATRICES, facts_of, in_words, rows_of_facts
from hag_plugin.hag.candidates import PLAIN, REORDERED, SHARED
from hag_plugin.hag.hag import HAG
from hag_plugin.hag.program import SelfLoops
from hag_plugin.notebook import html_table

WIDTHS = (8, 16, 32, 64, 128, 256, 512)
STYLE = """
body { font-family: system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
td, th { border-bottom: 1px solid #ccc; padding: 0.3rem 0.8rem; }
svg { max-width: 100%; height: auto; }
"""


def add(commands: Any) -> None:
    """Adds `report` to the commands."""
    parser = add_command(
        commands,
        "report",
        run,
        "Write one page about a graph and its HAG: what is shared, what runs at each width and "
        "what it takes, and a picture. It fetches nothing when it is opened. Needs matplotlib.",
        ["karate -o karate.html", "graph.npz -o graph.html --self-loops fill"],
    )
    parser.add_argument("graph", help=GRAPH_HELP)
    parser.add_argument(
        "-o", "--output", required=True, metavar="FILE", help="page to write, .html"
    )
    add_source(parser)
    add_search(parser)


def run(args: argparse.Namespace) -> None:
    """Searches the HAG and writes the page."""
    from hag_plugin.cli import picture

    files.check_output(args.output, (".html",), "--output")
    mode = LOOPS[args.self_loops]
    with tempfile.TemporaryDirectory() as folder:
        drawing = str(Path(folder) / "drawing.svg")
        picture.check_output(drawing)
        data = load(args, args.graph, features=False)
        hag = search(args, data, mode)
        drawn = draw_with_bar(args, data, hag, drawing)
        svg = Path(drawing).read_text()
    stats, facts = hag.stats(mode), facts_of(data, hag)
    words = in_words(stats, hag)
    made = {**machine(), **{name: v for name, v in package_versions().items() if v}}
    page = [
        "<!doctype html>",
        f'<meta charset="utf-8"><title>{escape(data.name)}: its HAG</title>',
        f"<style>{STYLE}</style>",
        f"<h1>{escape(data.name)}</h1>",
        f"<p>{escape(words)}</p>",
        html_table([("graph", ""), *rows_of_facts(facts)]),
        f"<h2>What is shared, in {MATRICES[args.self_loops]}</h2>",
        stats._repr_html_(),
        "<h2>What runs, by width</h2>",
        html_table(_by_width(hag, mode), words=3),
        "<h2>A picture</h2>",
        svg[svg.index("<svg") :],
        f"<p>{escape(', '.join(f'{name} {value}' for name, value in made.items()))}</p>",
    ]
    files.write_whole(Path(args.output), "\n".join(page).encode())
    result = {"dataset": {"name": data.name, "source": data.source}, **drawn, "output": args.output}
    print_result(args, result, f"{words} Written to {args.output}.")


def _by_width(hag: HAG, mode: SelfLoops) -> Iterator[tuple[str, ...]]:
    """For float32 features of each width: which program runs, why, and the milliseconds of each."""
    names = (SHARED, PLAIN, REORDERED)
    yield ("width", "runs", "by", *(f"{name}, ms" for name in names))
    for width in WIDTHS:
        choice = hag.choice(width, self_loops=mode)
        seconds = (choice.seconds.get(name) for name in names)
        times = ("-" if each is None else f"{1e3 * each:.3g}" for each in seconds)
        yield (f"{width}", choice.name, choice.by, *times)
