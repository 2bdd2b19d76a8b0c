"""Does for a given time what long jobs do, and writes what it held: memory, threads, open files.

`python tests/soak/run.py --seconds 3600 --csv soak.csv` ends with one line: whether what the last
quarter held is what the second quarter did, within 1 %. The first quarter warms up. Work comes in
rounds that are alike: graphs, models and batches are new in each, but of the same sizes.
"""

from __future__ import annotations

import argparse
import csv
import gc
import os
import pickle
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch_geometric import nn as pyg
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader

import hag_plugin as hp

WIDTH = 16
MOST = 0.01  # growth that is taken for noise
LAYERS: dict[str, Callable[[], torch.nn.Module]] = {
    "GCN": lambda: pyg.GCN(WIDTH, WIDTH, 2, WIDTH, dropout=0.2),
    "SAGE": lambda: pyg.GraphSAGE(WIDTH, WIDTH, 2, WIDTH),
    "GIN": lambda: pyg.GIN(WIDTH, WIDTH, 2, WIDTH),
    "GAT": lambda: pyg.GAT(WIDTH, WIDTH, 2, WIDTH, heads=2),
    "PNA": lambda: pyg.PNA(
        WIDTH, WIDTH, 2, WIDTH, aggregators=["mean", "max"], scalers=["identity"],
        deg=torch.ones(64, dtype=torch.long),
    ),
}  # fmt: skip


class Held(NamedTuple):
    """What the process held at a time, in seconds and bytes."""

    seconds: float
    rounds: int
    rss: int
    threads: int
    files: int


def held(begin: float, rounds: int) -> Held:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    status = Path("/proc/self/status").read_text()
    threads = next(line.split()[1] for line in status.splitlines() if line.startswith("Threads"))
    rss = pages * os.sysconf("SC_PAGE_SIZE")
    seconds = round(time.monotonic() - begin, 1)
    return Held(seconds, rounds, rss, int(threads), len(os.listdir("/proc/self/fd")))


def graph(nodes: int, group: int = 12) -> Data:
    """Groups of nodes that know each other, and edges between them."""
    which = torch.randint(0, max(nodes // group, 1), (nodes,))
    inside = (which[:, None] == which).nonzero().T
    between = torch.randint(0, nodes, (2, nodes))
    edges = torch.cat([inside, between], 1)
    return Data(x=torch.randn(nodes, WIDTH), edge_index=edges, num_nodes=nodes)


def step(model: torch.nn.Module, x: Tensor, edges: Any) -> None:
    model(x, edges).square().mean().backward()
    with torch.no_grad():
        for p in model.parameters():
            if p.grad is not None:
                p -= 0.01 * p.grad
                p.grad = None


# What is done; the same model lives on beside those that come and go ------------------------------


def changing_graphs(lasting: dict[str, torch.nn.Module]) -> None:
    """One model sees new graphs for good, each a few times."""
    for model in lasting.values():
        data = graph(300)
        for _ in range(3):
            step(model, data.x, data.edge_index)


def new_models(lasting: dict[str, torch.nn.Module]) -> None:
    for make in LAYERS.values():
        model, data = hp.accelerate(make()), graph(200)
        for _ in range(3):
            step(model, data.x, data.edge_index)
        str(hp.explain(model))
        copied = pickle.loads(pickle.dumps(model))
        hp.restore(model)
        step(copied, data.x, data.edge_index)


def batches(lasting: dict[str, torch.nn.Module]) -> None:
    """Batches of graphs with HAGs, and sampled ones, met once."""
    dataset = hp.pyg.ToHAG().dataset([graph(20) for _ in range(40)])
    for batch in DataLoader(dataset, batch_size=8):
        step(lasting["SAGE"], batch.x, batch.hag)
    for _ in range(8):
        batch = Batch.from_data_list([graph(30) for _ in range(4)])
        step(lasting["GAT"], batch.x, batch.edge_index)


def workers(lasting: dict[str, torch.nn.Module]) -> None:
    dataset = hp.pyg.ToHAG().dataset([graph(20) for _ in range(40)])
    for batch in DataLoader(dataset, batch_size=8, num_workers=2):
        step(lasting["GIN"], batch.x, batch.hag)


def saves(lasting: dict[str, torch.nn.Module]) -> None:
    data = graph(300)
    hag = hp.build_hag(data.edge_index, num_nodes=300, choose="hag")
    hag.prepare([False, "add"], transpose=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in ("a", "a", "b"):
            path = Path(folder) / f"{name}.npz"
            hag.save(path)
            hp.aggregate(data.x, hp.HAG.load(path))
        torch.save(lasting["GCN"], Path(folder) / "model.pt")
        torch.load(Path(folder) / "model.pt", weights_only=False)


def plans(lasting: dict[str, torch.nn.Module]) -> None:
    data, model = graph(200), LAYERS["GCN"]()
    found = hp.parallel.plan(model, data, "a100x8", world_size=4)
    traced = hp.parallel.trace(model, data)
    space = hp.parallel.space_of(traced, "a100x8", 4)
    hp.parallel.refine(found, space, hp.parallel.Budget(proposals=20))
    with tempfile.TemporaryDirectory() as folder:
        found.save(Path(folder) / "plan.json")
        str(hp.parallel.Plan.load(Path(folder) / "plan.json"))


WORK = (changing_graphs, new_models, batches, workers, saves, plans)


def soak(seconds: float) -> Iterator[Held]:
    """Rounds for so long; what is held after each."""
    lasting = {name: hp.accelerate(make()) for name, make in LAYERS.items()}
    # Compiled once: torch keeps something of every compilation, of stock's layers, too.
    compiled: Any = torch.compile(lasting["SAGE"], backend="aot_eager", dynamic=True)
    lasting["compiled"] = compiled
    begin, rounds = time.monotonic(), 0
    while not rounds or time.monotonic() - begin < seconds:
        for work in WORK:
            work(lasting)
        rounds += 1
        yield held(begin, rounds)


def verdict(rows: list[Held]) -> tuple[bool, str]:
    """Whether the last quarter of the rounds held what the second did; in words."""
    quarter = len(rows) // 4
    if quarter < 3:
        return False, f"{len(rows)} rounds are too few to tell; expected 12 or more"
    words, flat = [], True
    for name in ("rss", "threads", "files"):
        before = median(getattr(row, name) for row in rows[quarter : 2 * quarter])
        after = median(getattr(row, name) for row in rows[-quarter:])
        flat &= after <= before * (1 + MOST)
        unit = (lambda n: f"{n / 2**20:.1f} MiB") if name == "rss" else (lambda n: f"{n:g}")
        words.append(f"{name} {unit(before)} to {unit(after)}")
    last = rows[-1]
    return flat, f"{'flat' if flat else 'GREW'}: {', '.join(words)} over {last.rounds} rounds in " \
                 f"{last.seconds:.0f} s"  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600, help="how long (600)")
    parser.add_argument("--csv", type=Path, help="where to write a row for each round")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    rows = []
    with open(args.csv or os.devnull, "w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(Held._fields)
        for row in soak(args.seconds):
            rows.append(row)
            writer.writerow(row)
            out.flush()
    flat, words = verdict(rows)
    print(words)
    sys.exit(not flat)


if __name__ == "__main__":
    main()
