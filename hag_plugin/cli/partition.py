"""`hag-plugin partition`: cuts a graph into parts on disk, in bounded memory."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hag_plugin.cli.models import in_words
from hag_plugin.cli.options import add_command, positive, size
from hag_plugin.cli.output import print_result
from hag_plugin.data.edge_folders import dgl_bounds, open_graph
from hag_plugin.data.edge_stream import open_rows
from hag_plugin.files import DatasetError, read_json
from hag_plugin.parallel.graphs.store.assign import METHODS
from hag_plugin.parallel.graphs.store.folder import check_new_folder
from hag_plugin.parallel.graphs.store.manifest import Manifest
from hag_plugin.parallel.graphs.store.streams import RowStream
from hag_plugin.parallel.graphs.store.write import MEMORY, write_partitions

EXAMPLES = [
    "edges.parquet --ranks 4 -o parts",
    "graph.npz --ranks 8 -o parts --memory 16GiB",
    "edges.npy --ranks 64 -o parts --rows x=features.npy y=labels.npy --undirected",
    "edges.npy --ranks 4 -o parts --edge-values edge_weight=weights.npy",
    "edges.csv --ranks 4 -o parts --edge-values edge_weight=:3",
    "edges.txt --ranks 2 -o parts --assignment parts.txt",
    "ogbn_arxiv --ranks 4 -o parts --undirected",
]


def add(commands: Any) -> None:
    """Adds `partition` to the commands."""
    parser = add_command(
        commands,
        "partition",
        run,
        "Cut a graph into parts on disk, one for each rank. Edges are read once, block by block, "
        "and sorted on disk: the graph may be larger than memory. "
        "`hag_plugin.parallel.PartitionedData` opens one part.",
        EXAMPLES,
    )
    parser.add_argument(
        "input",
        help="file of edges: text, MatrixMarket, .npy, .npz (with x, y, masks, edge_weight and "
        "edge_attr), Parquet or "
        "Feather, told by its content; or a folder: OGB's raw files, DGL's parts, or a store, to "
        "cut it again",
    )
    parser.add_argument("--ranks", type=positive, required=True, metavar="R", help="parts to make")
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="folder to make")
    parser.add_argument("--rows", nargs="*", default=[], metavar="NAME=FILE.npy",
                        help="what nodes have: arrays with a row for each")  # fmt: skip
    parser.add_argument("--edge-values", nargs="*", default=[], metavar="NAME=FILE.npy",
                        help="what edges have: arrays with a row for each, in the order of the "
                        "input; or NAME=:COLUMN, of a text (its name, or number from 1), Parquet "
                        "or Feather, an array of an .npz, or ':value' of MatrixMarket")  # fmt: skip
    parser.add_argument("--nodes", type=positive, metavar="N", help="nodes of the graph (default: "
                        "what the file or --rows say, or the largest id and one more)")  # fmt: skip
    parser.add_argument("--method", choices=METHODS, default="auto", help="how nodes are assigned "
                        "(default auto: metis where it is installed and the graph fits into "
                        "memory, else fennel; contiguous where that cuts no more)")  # fmt: skip
    parser.add_argument("--assignment", metavar="FILE", help="the part of each node, made "
                        "elsewhere: .npy, text, or the .json of DGL's parts")  # fmt: skip
    parser.add_argument("--undirected", action="store_true",
                        help="take every edge in both directions, once")  # fmt: skip
    parser.add_argument("--hag", action="store_true", help="search the HAG of each part, and keep "
                        "what it saves, for plans")  # fmt: skip
    parser.add_argument("--memory", type=size, default=MEMORY, metavar="BYTES",
                        help="that the process may have in all (default 4GiB)")  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Cuts the graph and says how."""
    with in_words():
        check_new_folder(args.output)
        given = _pairs("--edge-values", args.edge_values)
        columns = {k: text[1:] for k, text in given.items() if text.startswith(":")}
        stream = open_graph(args.input, columns)
        rows = {**stream.rows, **_opened(_pairs("--rows", args.rows))}
        files = {k: text for k, text in given.items() if k not in columns}
        values = {**stream.values, **_opened(files)}
        nodes = args.nodes or stream.num_nodes
        stream = replace(stream, rows=rows, values=values, num_nodes=nodes)
        assignment = None if args.assignment is None else _assignment(args.assignment)
        print(stream.words, file=sys.stderr)
        found = write_partitions(
            stream,
            args.ranks,
            args.output,
            method=args.method,
            assignment=assignment,
            undirected=args.undirected,
            memory=args.memory,
            hag=args.hag,
            progress=False if args.quiet else None,
        )
    print_result(args, {"partition": _counts(found), "output": args.output}, _table(found, args))


def _pairs(option: str, texts: Sequence[str]) -> dict[str, str]:
    """What an option names, and where that is."""
    found = {}
    for text in texts:
        name, equals, place = text.partition("=")
        if not (name and equals and place):
            raise ValueError(f"{option} {text!r}; expected NAME=FILE.npy")
        found[name] = place
    return found


def _opened(files: Mapping[str, str]) -> dict[str, RowStream]:
    return {name: open_rows(path) for name, path in files.items()}


def _assignment(name: str) -> np.ndarray:
    path = Path(name)
    if path.suffix == ".json":
        document = read_json(path)
        bounds = dgl_bounds(document if isinstance(document, dict) else {}, path)
        return np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
    try:
        with open(path, "rb") as file:
            is_array = file.read(6) == b"\x93NUMPY"
        if is_array:
            return np.asarray(np.load(path, allow_pickle=False))
        text = path.read_text()
        wrong = re.search(r"[^0-9\s]", text)
        if wrong:
            line = text.count("\n", 0, wrong.start()) + 1
            raise DatasetError(
                f"{name}, line {line}: {wrong[0]!r}; expected a part's number a line"
            )
        return np.array(text.split(), np.int64)
    except (DatasetError, OSError):
        raise
    except Exception as e:  # NumPy raises whatever a wrong header leads to
        raise DatasetError(f"{name} is no file of parts' numbers: {e}") from e


def _counts(found: Manifest) -> dict[str, Any]:
    return {
        "nodes": found.nodes,
        "edges": found.edges,
        "ranks": found.ranks,
        "method": found.method,
        "cut": found.cut,
        "node_balance": found.node_balance,
        "edge_balance": found.edge_balance,
        "names": list(found.names),
        "edge_names": list(found.edge_names),
        "fingerprint": found.fingerprint,
        "parts": [
            {"rows": part.rows, "edges": part.edges, "halo": sum(part.halo), "hags": part.hags}
            for part in found.parts
        ],
    }


def _table(found: Manifest, args: argparse.Namespace) -> str:
    names = found.names + found.edge_names
    lines = [f"{'part':>5} {'nodes':>13} {'edges':>15} {'rows of others':>15}"]
    shown = found.parts[:16]
    for number, part in enumerate(shown):
        lines.append(f"{number:>5} {part.rows:>13,} {part.edges:>15,} {sum(part.halo):>15,}")
    if len(shown) < found.ranks:
        lines.append(f"  ... {found.ranks - len(shown)} more")
    saved = []
    if found.searched:
        read = sum(part.hags["none"][0] for part in found.parts)
        saved = [f"with HAGs, the parts read {read:,} rows for these edges"]
    return "\n".join(
        [
            *lines,
            f"{found.nodes:,} nodes, {found.edges:,} edges, {found.method}: {found.cut:.1%} of the "
            f"edges are cut, the largest part has {found.node_balance:.2f} times the mean of nodes "
            f"and {found.edge_balance:.2f} times that of edges",
            *saved,
            f"written to {args.output}" + (f", with {', '.join(names)}" if names else ""),
        ]
    )
