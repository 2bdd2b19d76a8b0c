"""Writes the figures that pages state, between their marks, from the results that are kept.

python -m examples.benchmark.measured_page
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from examples.multi_gpu import accuracy
from examples.reproduce import hag_training
from hag_plugin.files import write_whole
from hag_plugin.layers import pyg
from hag_plugin.layers.record import never

from . import (
    goals,
    report,
    suite_attention,
    suite_batches,
    suite_blocks,
    suite_calls,
    suite_dgl,
    suite_epochs,
    suite_layers,
    suite_sampled,
    tables,
    tables_cost,
    tables_never_slower,
)
from .results import Record, Results
from .sides import AUTO, COPY, NONE
from .tables import markdown, over, over_best, spread
from .verdict import FAILED

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
PAGES = (
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    EXAMPLES / "multi_gpu/README.md",
)
MARKED = re.compile(r"(<!-- measured: ([\w ]+) -->).*?(<!-- end of measured -->)", re.DOTALL)
INTEL, AMD = "intel-xeon-avx512", "amd-epyc-avx512"
FORMS = {"fresh": "outputs allocated", "reused": "outputs reused"}

Ratio = Callable[[Record], float | None]


class Measured:
    """The newest cells of a suite, and the machine and versions that they are of."""

    def __init__(self, folder: str, suite: str) -> None:
        self.folder = folder
        results = Results(EXAMPLES / "benchmark/results" / folder / "results.jsonl")
        self.environment = report.newest_environment(results)
        self.cells = results.cells(suite, report.alike(results, self.environment))
        self.suite = suite

    def table(self, rows: Iterable[Sequence[str]], head: Sequence[str] = tables.SPREAD) -> str:
        """A table below where and when it was measured."""
        machine, versions = self.environment["machine"], self.environment["versions"]
        isa = machine.get("instruction_set") or machine["instruction_sets"][-1]
        dates = sorted({record["date"][:10] for record in self.cells})
        words = (
            f"{machine['processor']} with {isa.upper()}, {self.environment['threads']} threads; "
            f"torch {versions['torch']}, PyG {versions['torch_geometric']}, DGL {versions['dgl']}; "
            f"{' to '.join(dict.fromkeys((dates[0], dates[-1])))} "
            f"([report](../examples/benchmark/results/{self.folder}/report.md)):"
        )
        return f"{words}\n\n{markdown(head, rows)}"

    def row(self, words: str, ratio: Ratio, records: Iterable[Record] | None = None) -> list[str]:
        found = [ratio(record) for record in (self.cells if records is None else records)]
        return spread(words, [value for value in found if value is not None], times)

    def slower(self) -> str:
        """How many cells failed, in a sentence."""
        failed = sum(record["verdict"] == FAILED for record in self.cells)
        return (
            f"Slower by more than 3 % and the noise, twice running: {failed} of "
            f"{len(self.cells):,} cells."
        )


def gain(peer: str, form: str = "fresh") -> Ratio:
    """How many times as fast as a peer."""
    return partial(over, form=form, slower=peer, faster=AUTO)


def times(ratio: float) -> str:
    """As in 2.31x, 23x and 1,760x."""
    return f"{ratio:,.0f}x" if ratio >= 10 else f"{ratio:.2f}x"


def share(value: float) -> str:
    return f"{value:.0%}"


# Marks ------------------------------------------------------------------------------------------


def sums() -> str:
    found = Measured(INTEL, "aggregate")
    found.cells = goals.pick(found.cells, loops="A+I", width=64, reduce="sum")
    rows = []
    for form, words in FORMS.items():
        ratios: dict[str, Ratio] = {
            "over PyG's gather and scatter": gain("PyG gather + scatter", form),
            "over DGL": gain("DGL", form),
            "over the fastest peer, graph by graph": partial(over_best, form=form),
            "over the same kernels without a HAG": gain(NONE, form),
        }
        rows += [found.row(f"{name}, {words}", ratio) for name, ratio in ratios.items()]
    copy = partial(over, form="reused", slower=AUTO, faster=COPY)
    rows.append(found.row("the time, over that of a copy of the features, outputs reused", copy))
    return found.table([row for row in rows if row[1] != "0"])


def epochs() -> str:
    found = Measured(INTEL, "epochs")
    return found.table([
        found.row("over PyG with `edge_index`", gain(suite_epochs.STOCK)),
        found.row("over DGL", gain("DGL")),
        found.row("over the fastest peer, cell by cell", partial(over_best, form="fresh")),
    ])  # fmt: skip


def layers() -> str:
    found = Measured(INTEL, "layers")
    found.cells = [record for record in found.cells if record["forms"]]
    sharing = {record.layer for record in pyg.RECORDS if record.attends is never}
    served = [record for record in found.cells if record["cell"]["layer"] in sharing]
    shares = [r["memory"][AUTO] / r["memory"][suite_layers.STOCK] for r in served]
    count = len({record["cell"]["layer"] for record in served})
    rows = [
        found.row(
            f"{count} layers that a HAG serves, over stock", gain(suite_layers.STOCK), served
        ),
        spread("their peak memory, of stock's", shares, share),
    ]
    slower = sum(suite_layers.is_slower(record["forms"]["fresh"]) for record in found.cells)
    return found.table(rows) + (
        "\n\nSlower by more than 5 % and the noise, where stock takes over 1 ms, with layers that "
        f"no HAG serves: {slower} of {len(found.cells)} calls."
    )


def calls() -> str:
    found = Measured(INTEL, "calls")
    sides = (suite_calls.HAG, suite_calls.PLAIN)
    extra = [max(r["extra"][side] for side in sides) for r in found.cells if r["extra"]]
    row = ["microseconds over stock", str(len(extra))]
    row += [f"{value:.0f}" for value in (min(extra), statistics.median(extra), max(extra))]
    return found.table([row], ("", "cells", "least", "median", "most"))


def dgl_layers() -> str:
    found = Measured(INTEL, "dgl-layers")
    rows = [found.row("over stock", gain(suite_dgl.STOCK))]
    count, slower = suite_dgl.slower(found.cells)
    return found.table(rows) + (
        f"\n\nSlower by more than 5 % and the noise, where stock takes over 1 ms: {len(slower)} of "
        f"{count} calls."
    )


def attention(folder: str = "attention") -> str:
    found = Measured(f"{AMD}/{folder}", "attention")
    rows = suite_attention.whole(found.cells)
    return f"{found.table(rows)}\n\n{found.slower()}"


def sampled() -> str:
    found = Measured(f"{AMD}/sampled", "sampled")
    return _sampled(found)


def sampled_power_law() -> str:
    return _sampled(Measured(f"{AMD}/sampled-power-law", "sampled"))


def _sampled(found: Measured) -> str:
    faster = gain(suite_sampled.STOCK)
    rows = []
    graphs = list(dict.fromkeys(record["cell"]["graph"] for record in found.cells))
    for part in suite_sampled.PARTS:
        group = [record for record in found.cells if record["cell"]["part"] == part]
        for graph in graphs:
            of_graph = [record for record in group if record["cell"]["graph"] == graph]
            rows.append(found.row(f"{part}, {graph}", faster, of_graph))
        if len(graphs) > 1:
            rows.append(found.row(f"{part}, all", faster, group))
    return f"{found.table(rows)}\n\n{found.slower()}"


def blocks() -> str:
    found = Measured(f"{AMD}/blocks", "blocks")
    rows = []
    for layer in dict.fromkeys(record["cell"]["layer"] for record in found.cells):
        of_layer = [record for record in found.cells if record["cell"]["layer"] == layer]
        rows.append(found.row(layer, gain(suite_blocks.STOCK), of_layer))
    return f"{found.table(rows)}\n\n{found.slower()}"


def batches() -> str:
    return _batches(Measured(f"{AMD}/batches", "batches"))


def batches_of_dd() -> str:
    return _batches(Measured(f"{AMD}/batches-DD", "batches"))


def _batches(found: Measured) -> str:
    rows = []
    for graph in sorted({record["cell"]["graph"] for record in found.cells}):
        rows.append(spread(graph, suite_batches.ratios(found.cells, graph), times))
    shares = suite_batches.shares(found.cells)
    if shares:
        rows.append(spread("memory that a process grows by, of PyG's", shares, share))
    return found.table(rows)


def choice() -> str:
    found = Measured(f"{AMD}/sample", "never-slower")
    regrets = tables_never_slower.regrets(found.cells)
    row = ["of the choice, over the fastest program", str(len(regrets))]
    row += [f"{value:.1%}" for value in tables_cost.median_mean_largest(regrets)]
    table = found.table([row], ("", "cells", "median", "mean", "most"))
    return f"{tables_never_slower.sentence(found.cells)} Time lost:\n\n{table}"


def search() -> str:
    found = Measured(INTEL, "scale")
    rows = [
        [r["cell"]["graph"], f"{r['graph']['nodes']:,}", f"{r['graph']['edges']:,}",
         f"{r['seconds']:.1f}", f"{r['memory'] / 2**30:.1f} GiB"]
        for r in found.cells
    ]  # fmt: skip
    return found.table(rows, ("", "nodes", "edges", "seconds", "memory, with its edges"))


def cost_model() -> str:
    found = Measured(INTEL, "cost")
    wrong = [error for record in found.cells for error in tables_cost.errors(record)]
    lost = [record["regret"] for record in found.cells]
    rows = [
        [words, str(len(values)), *(f"{v:.1%}" for v in tables_cost.median_mean_largest(values))]
        for words, values in (("error of a prediction", wrong), ("time lost by a choice", lost))
    ]
    return found.table(rows, ("", "cells", "median", "mean", "most"))


def pyg_sums() -> str:
    """Geometric means over all cells."""
    means = goals.headline(Measured(INTEL, "aggregate").cells)
    rows = {
        "sorted edges over PyG's gather and scatter": "none over PyG gather + scatter, fresh",
        "a HAG over PyG's gather and scatter": "auto over PyG gather + scatter, fresh",
        "a HAG over sorted edges": "auto over none, fresh",
        "sorted edges over torch's CSR product (MKL)": "none over torch CSR (MKL), fresh",
        "a HAG over torch's CSR product (MKL)": "auto over torch CSR (MKL), fresh",
    }
    return markdown(["", "times as fast"], [[n, f"{means[key]:.2g}x"] for n, key in rows.items()])


def _of_the_paper(side: str) -> list[float]:
    results = Results(EXAMPLES / "reproduce/results/hag.jsonl")
    found = (hag_training.faster(r, side) for r in results.cells("hag_training"))
    return [value for value in found if value is not None]


def paper_without() -> str:
    """Whole epochs over those of our kernels without a HAG."""
    found = _of_the_paper(NONE)
    mean = tables.geometric_mean(found)
    return f"{min(found):.2f}x to {max(found):.2f}x (geometric mean {mean:.2f}x)"


def paper_dgl() -> str:
    return tables.times(tables.geometric_mean(_of_the_paper("DGL")))


def paper_pyg() -> str:
    return times(tables.geometric_mean(_of_the_paper(suite_epochs.STOCK)) or 0.0)


def _of_several(file: str) -> list[Record]:
    """The results of examples on several devices."""
    text = (EXAMPLES / f"multi_gpu/results/{file}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def sorting() -> str:
    rows = [
        [r["by"], f"{r['cpu_seconds']:.1f}", f"{r['peak_bytes'] / 2**20:,.0f} MiB"]
        for r in _of_several("sorting")
        if "by" in r
    ]
    return markdown(["sorted by", "processor seconds", "memory"], rows)


def _large_graph(kind: str, file: str = "large_graph") -> list[Record]:
    return [record for record in _of_several(file) if record["kind"] == kind]


def cutting(file: str = "large_graph") -> str:
    """Memory of a process that cut a graph."""
    most = max(record["peak_bytes"] for record in _large_graph("partition", file))
    return f"{most / 2**30:.1f} GiB"


def one_process() -> str:
    """What one process needs for the whole graph."""
    (tenth,) = _large_graph("tenth")
    return f"{tenth['whole_bytes'] / 2**30:.1f} GiB"


def _sweep() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((EXAMPLES / "multi_gpu/results/sweep.json").read_text())
    return found


def sweep() -> str:
    return f"```text\n{accuracy.table(_sweep())}\n```"


def planned() -> str:
    """What a plan lost, and how far off predictions were."""
    found = _sweep()
    return (
        f"on two cores the plan took {found['regret']:.0%} longer than the fastest of all, where "
        f"the same plans measured twice differ by up to {found['noise']:.0%}, and predictions were "
        f"{-found['accuracy']['bias']:.0%} too low"
    )


MARKS: dict[str, Callable[[], str]] = {
    "sums": sums,
    "epochs": epochs,
    "layers": layers,
    "calls": calls,
    "layers of DGL": dgl_layers,
    "attention": attention,
    "attention of REDDIT": partial(attention, "attention-REDDIT-BINARY"),
    "sampled": sampled,
    "sampled power law": sampled_power_law,
    "blocks": blocks,
    "batches": batches,
    "batches of DD": batches_of_dd,
    "choice": choice,
    "search": search,
    "cost model": cost_model,
    "sums in PyG": pyg_sums,
    "epochs of the paper": paper_without,
    "epochs of the paper over DGL": paper_dgl,
    "epochs of the paper over PyG": paper_pyg,
    "sorting": sorting,
    "cutting": cutting,
    "cutting a billion": partial(cutting, "large_graph_cut"),
    "one process": one_process,
    "planned": planned,
    "sweep": sweep,
}


def with_figures(text: str) -> str:
    """A page with what stands between its marks written anew."""

    def figures(mark: re.Match[str]) -> str:
        found = MARKS[mark[2]]()
        apart = "\n\n" if "\n" in found else ""
        return f"{mark[1]}{apart}{found}{apart}{mark[3]}"

    return MARKED.sub(figures, text)


def main() -> None:
    for path in PAGES:
        write_whole(path, with_figures(path.read_text()).encode())


if __name__ == "__main__":
    main()
