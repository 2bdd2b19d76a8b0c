"""A graph that is cut on disk and trained on by ranks that may not have the memory for all of it.

python examples/multi_gpu/large_graph.py
python examples/multi_gpu/large_graph.py --edges 300e6 --folder /data/large --output results
python examples/multi_gpu/large_graph.py --edges 1e9 --features 16 --method contiguous \\
    --ranks 4 --cut-only --folder /data/large --output results

Generates the graph block by block, cuts it with `hag-plugin partition`, measures the machine with
`hag-plugin probe`, and trains on 2 and on 4 ranks. A rank may have so much memory: what one process
needs for the whole, judged by a tenth of the graph, over the number of ranks, times --slack. A copy
of few nodes is trained by as many ranks in float64, and by PyG in one process: the losses must be
the same. With --cut-only the graph is cut, and nothing else. Where the disk has too little for all
of that, it is said before.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import task
import torch
from large_graph_rank import Job, model_of
from torch_geometric.data import Data

import hag_plugin as hp
from hag_plugin import provenance
from hag_plugin.files import write_whole
from hag_plugin.parallel.graphs.store.part_files import ArrayFile

HERE = Path(__file__).resolve().parent
BLOCK = 1 << 22  # edges at a time
NEAR, FAR = 1000, 0.02  # a source is so many nodes away, the mean; a share comes from anywhere
CLASSES = 8
TENTH, COPY = 10, 20_000  # of the graph; nodes of the copy, at most
SAME = 1e-10  # of losses in float64
MIB = 1 << 20
PLACES = ("folder", "output", "topology")  # options that are no settings


def options() -> argparse.ArgumentParser:
    """What may be asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--edges", type=float, default=2e6, help="of the graph (default 2e6)")
    add("--degree", type=int, default=30, help="edges a node (default 30)")
    add("--features", type=int, default=32, help="of a node (default 32)")
    add("--hidden", type=int, default=32, help="of the model (default 32)")
    add("--layers", type=int, default=2, help="of the model (default 2)")
    add("--model", choices=("gcn", "sage", "gin"), default="gcn")
    add("--steps", type=int, default=3, help="of training (default 3)")
    add("--ranks", type=int, nargs="+", default=[2, 4], help="numbers of them (default 2 4)")
    add("--method", default="fennel", help="as for hag-plugin partition (default fennel)")
    add("--memory", default="2GiB", help="that partition may have (default 2GiB)")
    add("--slack", type=float, nargs="+", default=[1.0],
        help="times what one process needs, over the number of ranks; one, or one for each of "
        "--ranks (default 1)")  # fmt: skip
    add("--cut-only", action="store_true", help="cut the graph, and train on nothing")
    add("--topology", help="a preset or a file, to plan for; by default this machine is probed")
    add("--seed", type=int, default=0)
    add("--folder", help="where all is written, and stays (default: a folder that goes at the end)")
    add("--output", metavar="DIR", help="write large_graph.jsonl and large_graph.md there")
    return parser


# The graph ----------------------------------------------------------------------------------------


def blocks(count: int) -> Iterator[tuple[int, int]]:
    """Where so many at a time begin and end."""
    for first in range(0, count, BLOCK):
        yield first, min(first + BLOCK, count)


def generate(folder: Path, nodes: int, edges: int, args: argparse.Namespace, dtype: str) -> None:
    """Writes edges, features, labels and a mask: nodes on a ring whose neighbours are near. Their
    names tell nothing, unless blocks of them are to be the parts. What is held is 8 bytes a node,
    and a block."""
    folder.mkdir()
    random = np.random.default_rng(args.seed)
    names = np.arange(nodes, dtype=np.int32)
    if args.method != "contiguous":
        random.shuffle(names)
    file = ArrayFile(folder / "edges.npy", np.int32, (2,))
    for first, last in blocks(edges):
        target = random.integers(0, nodes, last - first)
        source = (target + random.geometric(1 / NEAR, last - first)) % nodes
        far = random.random(last - first) < FAR
        source[far] = random.integers(0, nodes, int(far.sum()))
        file.append(np.stack([names[source], names[target]], axis=1))
    file.finish()
    place = np.empty_like(names)
    place[names] = np.arange(nodes, dtype=np.int32)
    x = ArrayFile(folder / "x.npy", dtype, (args.features,))
    y = ArrayFile(folder / "y.npy", np.int64)
    mask = ArrayFile(folder / "train_mask.npy", bool)
    for first, last in blocks(nodes):
        label = place[first:last].astype(np.int64) * CLASSES // nodes
        rows = random.standard_normal((last - first, args.features), np.float32)
        rows[np.arange(last - first), label % args.features] += 1
        x.append(rows)
        y.append(label)
        mask.append(random.random(last - first) < 0.6)
    for made in (x, y, mask):
        made.finish()


def cut(folder: Path, ranks: int, args: argparse.Namespace) -> dict[str, Any]:
    """Runs `hag-plugin partition`, and says what it took."""
    out = folder / f"parts-{ranks}"
    rows = [f"{name}={folder / name}.npy" for name in ("x", "y", "train_mask")]
    command = [sys.executable, "-m", "hag_plugin", "partition", str(folder / "edges.npy")]
    command += ["--ranks", str(ranks), "-o", str(out), "--rows", *rows, "--method", args.method]
    command += ["--memory", args.memory, "--json", "--quiet"]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    counts = json.loads(said)["partition"]
    store = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return {
        "kind": "partition",
        "seconds": time.perf_counter() - start,
        "peak_bytes": used.ru_maxrss << 10,
        "store_bytes": store,
        **{k: counts[k] for k in ("nodes", "edges", "ranks", "method", "cut", "edge_balance")},
    }


def disk_bytes(edges: int, nodes: int, args: argparse.Namespace) -> int:
    """That all of it takes at its peak, when the last store is written: the graph, a tenth of it,
    the stores, and what edges are sorted in."""
    row = 4 * args.features + 9  # features, label and mask
    graph, store = 8 * edges + row * nodes, 4 * edges + (row + 16) * nodes
    sorting = 16 * edges * (2 if args.method in ("fennel", "auto") else 1)
    tenth = 0 if args.cut_only else (graph + store) // TENTH
    return graph + tenth + len(args.ranks) * store + sorting


def check_disk(folder: Path, needed: int) -> None:
    """Ends where the disk has less."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise SystemExit(
            f"{folder} has {free / 1e9:.1f} GB free; expected {needed / 1e9:.1f} GB. Fewer "
            "--features and --ranks take less, and so does --method contiguous"
        )


# Training -----------------------------------------------------------------------------------------


def planned(job: Job, ranks: int, topology: Any) -> hp.parallel.Plan:
    """The cheapest plan in which rows go to those that read them; written where the job says."""
    model = model_of(job.model, job.sizes, job.double)
    graph = hp.parallel.trace(model, hp.parallel.PartitionedData(job.parts), hag=False)
    if ranks == 1:
        plan = hp.parallel.plan(graph, topology=topology, world_size=1)
    else:
        plan = task.plan_for(graph, topology, ranks, "rows, halo")
    plan.save(job.plan)
    return plan


def launch(folder: Path, ranks: int, jobs: list[Job]) -> list[dict[str, Any]]:
    """Runs jobs, one after the other, on so many ranks."""
    (folder / "jobs.json").write_text(json.dumps([asdict(job) for job in jobs]))
    environment = {"GLOO_SOCKET_IFNAME": "lo"} | os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(ranks), str(HERE / "large_graph_rank.py")]
    command += [str(folder / "jobs.json"), str(folder / "found.json")]
    if subprocess.run(command, env=environment, check=False).returncode:
        raise SystemExit(f"{ranks} ranks failed")
    found: list[dict[str, Any]] = json.loads((folder / "found.json").read_text())
    return found


def alone(folder: Path, job: Job) -> list[float]:
    """The losses of PyG's own model, in one process, on the whole graph."""
    arrays = {n: torch.from_numpy(np.load(folder / f"{n}.npy")) for n in ("x", "y", "train_mask")}
    edges = torch.from_numpy(np.load(folder / "edges.npy")).long().t().contiguous()
    data = Data(edge_index=edges, **arrays)
    model = model_of(job.model, job.sizes, job.double)
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=0.01), []
    for _ in range(job.steps):
        optimizer.zero_grad()
        out = model(data.x, data.edge_index)[data.train_mask]
        loss = torch.nn.functional.cross_entropy(out, data.y[data.train_mask])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def probed(args: argparse.Namespace, folder: Path) -> str:
    """The machine that was named, or a file with what was measured of this one."""
    if args.topology:
        return str(args.topology)
    out = str(folder / "machine.json")
    command = [sys.executable, "-m", "hag_plugin", "probe", "--quiet", "-o", out, "--world-sizes"]
    subprocess.run([*command, *map(str, args.ranks)], check=True, stdout=subprocess.DEVNULL)
    return out


def peak_of(found: dict[str, Any]) -> int:
    """Bytes that the rank which needs most has besides what it had before it opened its part."""
    return max(
        max(rank["setup_bytes"], rank["step_bytes"]) - rank["before_bytes"]
        for rank in found["ranks"]
    )


def run(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """All of it; the rows of the tables."""
    edges = int(args.edges)
    nodes = edges // args.degree
    check_disk(folder, disk_bytes(edges, nodes, args))
    copied = min(nodes, COPY)
    sizes = (args.features, args.hidden, args.layers, CLASSES)
    rows: list[dict[str, Any]] = [{
        "kind": "setting",
        "date": date.today().isoformat(),
        "machine": provenance.machine(),
        "versions": provenance.package_versions(),
        "topology": args.topology or "this machine, probed",
        **{k: v for k, v in vars(args).items() if k not in PLACES},
    }]  # fmt: skip

    def say(words: str) -> None:
        print(f"{time.perf_counter() - start:6.0f} s  {words}", file=sys.stderr, flush=True)

    def job(place: str, ranks: int, **more: Any) -> Job:
        store = folder / place / f"parts-{ranks}"
        plan = folder / place / f"plan-{ranks}.json"
        return Job(str(store), str(plan), args.model, sizes, args.steps, **more)

    start = time.perf_counter()
    if args.cut_only:
        say(f"generating {edges:,} edges")
        generate(folder / "whole", nodes, edges, args, "f4")
        for ranks in args.ranks:
            say(f"cutting into {ranks} parts")
            rows.append(cut(folder / "whole", ranks, args))
        return rows
    say("measuring the machine")
    topology = probed(args, folder)
    say(f"generating {edges:,} edges, a tenth, and a copy of {copied * args.degree:,}")
    generate(folder / "whole", nodes, edges, args, "f4")
    generate(folder / "tenth", nodes // TENTH, edges // TENTH, args, "f4")
    generate(folder / "copy", copied, copied * args.degree, args, "f8")
    say("one process on a tenth")
    cut(folder / "tenth", 1, args)
    tenth = job("tenth", 1)
    planned(tenth, 1, topology)
    (found,) = launch(folder, 1, [tenth])
    need = peak_of(found) * TENTH
    rows.append({"kind": "tenth", "whole_bytes": need, "found": found})
    losses = alone(folder / "copy", job("copy", 1, double=True))
    for ranks, slack in zip(args.ranks, itertools.cycle(args.slack), strict=False):
        say(f"cutting into {ranks} parts")
        rows.append(cut(folder / "whole", ranks, args))
        cut(folder / "copy", ranks, args)
        jobs = [
            job("whole", ranks, limit=math.ceil(need / ranks * slack)),
            job("copy", ranks, double=True),
        ]
        plans = [planned(each, ranks, topology) for each in jobs]
        say(f"training on {ranks} ranks")
        large, small = launch(folder, ranks, jobs)
        rows.append({
            "kind": "training",
            "planned_bytes": plans[0].memory.total,
            "planned_sent_bytes": sum(layer.sent for layer in plans[0].layers),
            "planned_seconds": plans[0].seconds,
            "strategies": {layer.name: str(layer.config) for layer in plans[0].layers},
            "found": large,
        })  # fmt: skip
        apart = max(abs(a / b - 1) for a, b in zip(small["losses"], losses, strict=True))
        rows.append({
            "kind": "equal", "ranks": ranks, "losses": small["losses"], "alone": losses,
            "apart": apart, "nodes": copied,
        })  # fmt: skip
        if not apart <= SAME:
            raise SystemExit(f"{ranks} ranks have losses {small['losses']}, one process {losses}")
    say("done")
    return rows


# The tables ---------------------------------------------------------------------------------------


def table(header: list[str], lines: list[list[str]]) -> str:
    """In Markdown, numbers to the right."""
    rule = ["---"] + ["--:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, rule, *lines])


def mib(nbytes: float) -> str:
    return f"{nbytes / MIB:,.0f} MiB"


def page(rows: list[dict[str, Any]]) -> str:
    """The tables, with what they are of."""
    of = {kind: [row for row in rows if row["kind"] == kind] for kind in
          ("setting", "tenth", "partition", "training", "equal")}  # fmt: skip
    (setting,), cuts = of["setting"], of["partition"]
    here = setting["machine"]
    command = ["python examples/multi_gpu/large_graph.py"]
    for name, value in setting.items():
        if options().get_default(name) not in (None, value):
            values = value if isinstance(value, list) else [value] * (value is not True)
            command.append(" ".join([f"--{name.replace('_', '-')}", *map(str, values)]))
    versions = ", ".join(f"{k} {v}" for k, v in setting["versions"].items() if v)
    trained, memory = [], []
    for row in of["training"]:
        found = row["found"]
        most = max(rank["sent_bytes"] for rank in found["ranks"])
        trained.append([
            str(len(found["ranks"])),
            f"{most / MIB:,.1f} MiB", f"{row['planned_sent_bytes'] / MIB:,.1f} MiB",
            f"{found['step_seconds']:.2f}", f"{row['planned_seconds']:.2f}",
            f"{max(rank['setup_seconds'] for rank in found['ranks']):.0f}",
            ", ".join(f"{loss:.4f}" for loss in found["losses"]),
        ])  # fmt: skip
        memory += [
            [
                f"{rank['rank']} of {len(found['ranks'])}",
                f"{rank['nodes']:,}", f"{rank['edges']:,}", f"{rank['halo']:,}",
                mib(rank["before_bytes"]), mib(rank["setup_bytes"] - rank["before_bytes"]),
                mib(rank["step_bytes"] - rank["before_bytes"]), mib(row["planned_bytes"]),
                mib(found["limit"]),
            ]
            for rank in found["ranks"]
        ]  # fmt: skip
    title, model, ranks = "A graph that is cut into parts", "", ""
    if of["training"]:
        title = "A graph of which each rank has its part"
        model = (
            f"; {setting['model']}, {setting['layers']} layers, {setting['hidden']} hidden, "
            "float32, full batch"
        )
        ranks = " Ranks are processes of this one machine, one thread each, with gloo."
    cutting = [
        f"# {title}",
        f"{cuts[0]['nodes']:,} nodes, {cuts[0]['edges']:,} edges, {setting['features']} features"
        f"{model}. By `{' '.join(command)}`, {setting['date']}: {here['processor']}, "
        f"{here['cores']} cores, {here['system']}; {versions}.{ranks}{setting.get('note', '')}",
        "## Cutting",
        f"With `--memory {setting['memory']}`.",
        table(["parts", "method", "seconds", "peak memory", "store", "edges that are cut",
               "most edges over the mean"],
              [[str(c["ranks"]), c["method"], f"{c['seconds']:.0f}", mib(c["peak_bytes"]),
                mib(c["store_bytes"]), f"{c['cut']:.1%}", f"{c['edge_balance']:.2f}"]
               for c in cuts]),
    ]  # fmt: skip
    if not of["training"]:
        return "\n\n".join(cutting) + "\n"
    (tenth,) = of["tenth"]
    return "\n\n".join([
        *cutting,
        "## Memory of a rank",
        f"One process needs {mib(tenth['whole_bytes'])} for the whole graph: ten times what it "
        "needed for a tenth. No rank may have more than the last column (`RLIMIT_DATA`). `before` "
        "is what Python, torch and PyG have when the part is opened, and all else is besides. "
        "The plan counts tensors in a step; pages of files that are mapped count as what a "
        "rank has.",
        table(["rank", "nodes", "edges", "rows of others", "before", "set up", "a step",
               "as planned", "limit"], memory),
        "## A step",
        f"Plans are for {setting['topology']}. Of the rank that sends most, of the slowest rank; "
        "the first step, which fetches features, is left out.",
        table(["ranks", "sent", "as planned", "seconds", "as planned", "seconds of setting up",
               "losses"], trained),
        "## Equal to one process",
        f"A copy of {of['equal'][0]['nodes']:,} nodes in float64, beside PyG's model: losses of "
        f"{setting['steps']} steps differ by "
        + ", ".join(f"{e['apart']:.1e} on {e['ranks']} ranks" for e in of["equal"]) + ".",
    ]) + "\n"  # fmt: skip


def main() -> None:
    args = options().parse_args()
    name = "large_graph_cut" if args.cut_only else "large_graph"
    least = 20 * TENTH * args.degree
    if args.edges < least or min(args.ranks) < 2:
        raise SystemExit(
            f"--edges is {args.edges:.0f} and --ranks {args.ranks}; expected {least} edges or "
            "more, and 2 ranks or more"
        )
    folder = Path(args.folder or tempfile.mkdtemp(prefix="large_graph."))
    if args.folder:
        folder.mkdir()
    try:
        rows = run(args, folder)
    finally:
        if not args.folder:
            shutil.rmtree(folder)
    text = page(rows)
    if args.output:
        out = Path(args.output)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        write_whole(out / f"{name}.jsonl", lines.encode())
        write_whole(out / f"{name}.md", text.encode())
    print(text, end="")


if __name__ == "__main__":
    main()
