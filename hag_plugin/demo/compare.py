"""The demo: one GCN classifier trained twice, stock PyG or DGL first, accelerated second."""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any

import numpy as np
import torch

from hag_plugin.data import datasets
from hag_plugin.data.graph_data import GraphData
from hag_plugin.demo.side import FRAMEWORKS, Settings, serve, to_arrays
from hag_plugin.extras import needed_by
from hag_plugin.files import DatasetError, check_output, whole_file
from hag_plugin.parallel.graphs.partition import partition
from hag_plugin.starting import interrupts_blocked

MEBI = 2**20
COUNTS = (
    ("aggregations", "aggregations", "fewer/more"),
    ("rows_read", "rows read", "fewer/more"),
    ("bytes", "bytes, CSR and program", "smaller/larger"),
)
DIFFERENCES = {
    "initial_float64": "outputs differ by, initial weights, float64",
    "same_weights_float32": "  stock's trained weights in both, float32",
    "trained_float32": "  each side's own (training amplifies rounding)",
}
PICTURES = (".png", ".svg", ".pdf")
COMMUNITIES = 8
WORTH = 1.02  # less than this is within the noise of a timing, and is not called a gain
SAME = 1e-5  # of the largest output: what rounding in float32 may come to in a two-layer model


class TrainingError(RuntimeError):
    """A side of the comparison failed; the message is its own."""


class RemoteError(Exception):
    """The traceback of the other process, as the cause of a `TrainingError`."""


@dataclass(frozen=True)
class Run:
    """What one side measured.

    Attributes:
        epoch_seconds: of every epoch, batching included.
        batching_seconds: the part of each that went into batching.
        losses: mean training loss of every epoch.
        accuracy: on the test set, after the last epoch.
        peak_bytes: growth of the process's resident memory over search and training, from the
            moment the data was loaded; None where the system does not tell.
        hag_share: the share of batches on which the HAG's program runs, and not the plain graph's;
            None for the stock side.
    """

    epoch_seconds: list[float]
    batching_seconds: list[float]
    losses: list[float]
    accuracy: float
    peak_bytes: int | None
    hag_share: float | None = None

    @property
    def seconds_per_epoch(self) -> float:
        """The median, without the first epoch (warm-up) if there are others."""
        return median(self.epoch_seconds[1:] or self.epoch_seconds)

    @property
    def batching_per_epoch(self) -> float:
        """The median of `batching_seconds`, likewise."""
        return median(self.batching_seconds[1:] or self.batching_seconds)


@dataclass(frozen=True)
class Comparison:
    """Both runs, what the search found and how far the outputs differ.

    Attributes:
        stats: sums of `hag_plugin.Stats` over all graphs, for one aggregation over A + I.
        search_seconds: wall time of the transform, search included, but not of measuring the
            machine, which the first search on it does.
        differences: largest difference of the outputs on the test set, relative to the largest
            stock output: "initial_float64" with the same initial weights, "same_weights_float32"
            with the stock's final weights in both, "trained_float32" with each side's own.
    """

    data: GraphData
    settings: Settings
    stock: Run
    accelerated: Run
    stats: dict[str, float]
    search_seconds: float
    differences: dict[str, float]

    @property
    def speedup(self) -> float:
        """Seconds an epoch, stock over accelerated."""
        return self.stock.seconds_per_epoch / self.accelerated.seconds_per_epoch

    @property
    def epochs_to_earn_back(self) -> float | None:
        """Epochs after which the search is paid for, or None if it never is."""
        saved = self.stock.seconds_per_epoch - self.accelerated.seconds_per_epoch
        return self.search_seconds / saved if saved > 0 else None

    @property
    def profits(self) -> bool:
        """Whether an epoch got faster by more than noise."""
        return self.speedup > WORTH

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        data, stats = self.data, self.stats
        return {
            "dataset": {
                "name": data.name,
                "source": data.source,
                "graphs": data.num_graphs,
                "nodes": data.num_nodes,
                "edges": data.num_edges,
                "classes": data.num_classes,
                "task": "graphs" if data.labels_graphs else "nodes",
            },
            "settings": asdict(self.settings),
            "search_seconds": self.search_seconds,
            "stats": stats,
            "stock": asdict(self.stock) | {"seconds_per_epoch": self.stock.seconds_per_epoch},
            "accelerated": asdict(self.accelerated)
            | {"seconds_per_epoch": self.accelerated.seconds_per_epoch},
            "speedup": self.speedup,
            "epochs_to_earn_back": self.epochs_to_earn_back,
            "profits": self.profits,
            "differences": self.differences,
            "conclusion": conclusion(self),
        }


class Worker:
    """A side of the comparison in a process of its own."""

    def __init__(self, name: str, data: dict[str, Any], settings: Settings) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        arguments = (theirs, data, settings, name == "accelerated")
        self.process = context.Process(target=serve, args=arguments, daemon=True)
        with interrupts_blocked():
            self.process.start()
        theirs.close()

    def answer(self) -> Any:
        """Waits for the answer to the last request."""
        try:
            ok, result = self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.join(5)
            raise TrainingError(
                f"the {self.name} run ended without an answer (exit code "
                f"{self.process.exitcode}; -9 usually means out of memory)"
            ) from None
        if not ok:
            words, trace = result
            raise TrainingError(f"the {self.name} run failed: {words}") from RemoteError(trace)
        return result

    def ask(self, method: str, *arguments: Any) -> Any:
        """Calls a method of the `Side` in the process."""
        self.connection.send((method, arguments))
        return self.answer()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.connection.close()
        if kind is not None:
            self.process.terminate()
        self.process.join()


def compare(
    data: GraphData, settings: Settings, progress: Callable[[str, float], None] | None = None
) -> Comparison:
    """Trains stock and accelerated with the same weights, batches and split.

    The two take turns epoch by epoch, stock first, so that both see the same machine.

    Args:
        data: a labelled graph, or labelled graphs.
        settings: what both share.
        progress: called with what is being done and the share that is done, 0 to 1.

    Raises:
        DatasetError: there are no labels to learn.
        TrainingError: a run failed.
    """
    data = prepare(data, settings.seed)
    report = progress or (lambda words, share: None)
    arrays = to_arrays(data)
    steps = settings.epochs + 2
    report("starting", 0.0)
    with (
        Worker("stock", arrays, settings) as stock,
        Worker("accelerated", arrays, settings) as accelerated,
    ):
        both = (stock, accelerated)
        for side in both:
            side.answer()
        report("searching", 0.5 / steps)
        found = [side.ask("prepare") for side in both][1]
        epochs: tuple[list[tuple[float, float, float]], ...] = ([], [])
        for epoch in range(settings.epochs):
            for number, side in enumerate(both):
                words = f"{side.name}, epoch {epoch + 1}/{settings.epochs}"
                report(words, (epoch + 1 + number / 2) / steps)
                epochs[number].append(side.ask("epoch"))
        report("comparing", (settings.epochs + 1) / steps)
        ends = [side.ask("finish") for side in both]
        differences = _differences(stock, accelerated)
        report("done", 1.0)
    first, second = (
        Run([e[0] for e in done], [e[1] for e in done], [e[2] for e in done], **end)
        for done, end in zip(epochs, ends, strict=True)
    )
    stats, search_seconds = found["stats"], found["search_seconds"]
    return Comparison(data, settings, first, second, stats, search_seconds, differences)


def prepare(data: GraphData, seed: int) -> GraphData:
    """`data` with features, labels and, where nodes are labelled, with a train and a test mask."""
    if data.y is None:
        data = with_communities(data, seed)
    if data.y is None or data.num_classes < 2:
        raise DatasetError(
            f"{data.name} has no labels of two classes or more, which the demo needs to train a "
            "classifier; `hag-plugin stats` takes graphs without labels"
        )
    if data.labels_graphs:
        if data.num_graphs < 5:
            raise DatasetError(f"{data.name}: {data.num_graphs} graphs; the demo needs 5 or more")
        if int(data.y.min()) < 0:
            raise DatasetError(f"{data.name}: a graph without a label; the demo needs all of them")
    elif data.train_mask is None or data.test_mask is None:
        known = torch.nonzero(data.y >= 0).view(-1).numpy()
        known = np.random.default_rng(seed).permutation(known)
        masks = [torch.zeros(data.num_nodes, dtype=torch.bool) for _ in range(3)]
        for mask, part in zip(
            masks, np.split(known, [len(known) * 6 // 10, len(known) * 8 // 10]), strict=True
        ):
            mask[torch.from_numpy(part)] = True
        data = replace(data, train_mask=masks[0], val_mask=masks[1], test_mask=masks[2])
    return datasets.with_features(data)


def with_communities(data: GraphData, seed: int) -> GraphData:
    """`data` with the community of each node as its label, where there are nodes for two of them.

    A file of edges has no labels; what neighbours have in common can be learned.
    """
    parts = min(COMMUNITIES, data.num_nodes // 5)
    if parts < 2:
        return data
    found = partition(data.edge_index.long(), data.num_nodes, parts, "labels", seed)
    y = torch.empty(data.num_nodes, dtype=torch.long)
    y[torch.from_numpy(found.order)] = torch.from_numpy(found.part)
    words = f"it has no labels: classes are {parts} communities, found by label propagation"
    return replace(data, y=y, source=f"{data.source}; {words}")


def _differences(stock: Worker, accelerated: Worker) -> dict[str, float]:
    def apart(dtype: torch.dtype, weights: Any = None) -> float:
        a, b = (side.ask("outputs", dtype, weights) for side in (stock, accelerated))
        return float(np.abs(a - b).max() / max(np.abs(a).max(), np.finfo(a.dtype).tiny))

    return {
        "initial_float64": apart(torch.float64, "initial"),
        "same_weights_float32": apart(torch.float32, stock.ask("weights")),
        "trained_float32": apart(torch.float32),
    }


# In words ---------------------------------------------------------------------------------------


def table(result: Comparison) -> str:
    """The comparison as text: a heading, one row a quantity, a closing sentence."""
    data, settings, stats = result.data, result.settings, result.stats
    stock, ours = result.stock, result.accelerated
    rows = [("", f"stock {_framework(result)}", "accelerated", "ratio")]

    def add(name: str, a: float | None, b: float | None, form: str, words: str = "") -> None:
        ratio = ""
        if words and a and b:
            better, worse = words.split("/")
            ratio = f"{a / b:.2f}x {better}" if a >= b else f"{b / a:.2f}x {worse}"
        left, right = ("-" if v is None else form.format(v) for v in (a, b))
        rows.append((name, left, right, ratio))

    earned = result.epochs_to_earn_back
    add("search, seconds", None, result.search_seconds, "{:.3f}")
    add(
        "aggregations", stats["aggregations_before"], stats["aggregations"], "{:,.0f}", "fewer/more"
    )
    add("rows read", stats["rows_read_before"], stats["rows_read"], "{:,.0f}", "fewer/more")
    add(
        "bytes, CSR and program", stats["bytes_before"], stats["bytes"], "{:,.0f}", "smaller/larger"
    )
    add(
        "seconds an epoch",
        stock.seconds_per_epoch,
        ours.seconds_per_epoch,
        "{:.4f}",
        "faster/slower",
    )
    if data.labels_graphs:
        add("  of it batching", stock.batching_per_epoch, ours.batching_per_epoch, "{:.4f}")
    share = ours.hag_share
    if share is not None:
        add("batches that run the HAG" if data.labels_graphs else "runs the HAG",
            None, 100 * share, "{:.0f} %")  # fmt: skip
    rows.append(("epochs that earn the search back", "-",
                 "never" if earned is None else f"{earned:.2f}", ""))  # fmt: skip
    peaks = [r.peak_bytes / MEBI if r.peak_bytes else None for r in (stock, ours)]
    add("peak memory, MiB", peaks[0], peaks[1], "{:,.1f}", "less/more")
    add("final loss", stock.losses[-1], ours.losses[-1], "{:.5f}")
    add("test accuracy", stock.accuracy, ours.accuracy, "{:.4f}")
    for key, words in DIFFERENCES.items():
        add(words, None, result.differences[key], "{:.1e}")
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [
        f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}  "
        f"{row[3]:>{widths[3]}}".rstrip()
        for row in rows
    ]
    lines.insert(1, "-" * max(map(len, lines)))
    what = f"{data.num_graphs:,} graphs, " if data.num_graphs > 1 else ""
    batches = f"batches of {settings.batch_size}" if data.labels_graphs else "full graph"
    heading = [
        f"{data.name}: {what}{data.num_nodes:,} nodes, {data.num_edges:,} edges, "
        f"{data.num_classes} classes ({data.source})",
        f"2-layer GCN, hidden {settings.hidden}, {settings.epochs} epochs, {batches}, "
        f"{settings.threads} thread(s); CPU; stock is {_framework(result)}"
        + (" with edge_index" if settings.framework == "pyg" else ""),
        "",
    ]
    return "\n".join([*heading, *lines, "", conclusion(result)])


def _framework(result: Comparison) -> str:
    return FRAMEWORKS[result.settings.framework][0]


def conclusion(result: Comparison) -> str:
    """Two plain sentences: whether it paid here and what it paid with; whether results agree."""
    apart = result.differences["same_weights_float32"]
    if apart <= SAME:
        return f"{_gain(result)} With the same weights the outputs agree up to rounding."
    return f"{_gain(result)} The outputs DIFFER by {apart:.1e} with the same weights: a defect."


def _gain(result: Comparison) -> str:
    shared = result.stats["rows_read_before"] / max(result.stats["rows_read"], 1)
    earned = result.epochs_to_earn_back
    times = f"{result.speedup:.1f}x"
    if not result.profits or earned is None:
        return (
            f"On this graph the accelerated model does not pay: an epoch takes "
            f"{result.accelerated.seconds_per_epoch:.4f} s against "
            f"{result.stock.seconds_per_epoch:.4f} s"
            + (f", although the HAG reads {shared:.1f}x fewer rows." if shared > 1.1 else ".")
        )
    if earned > result.settings.epochs:
        return (
            f"An epoch is {times} faster, but the search is earned back only after "
            f"{math.ceil(earned)} epochs, and this run had {result.settings.epochs}."
        )
    if shared >= 1.1 and result.accelerated.hag_share == 0:
        return (
            f"An epoch is {times} faster, and the search is earned back after {earned:.1f} epochs; "
            f"the HAG reads {shared:.1f}x fewer rows, but at width {result.settings.hidden} the "
            "plain graph is faster and runs, so the gain is the fused kernel's."
        )
    if shared < 1.1:
        return (
            f"An epoch is {times} faster, and the search is earned back after {earned:.1f} epochs; "
            f"this graph shares next to nothing ({shared:.2f}x fewer rows read), so the gain is "
            "the fused kernel's, not the shared sums'."
        )
    return (
        f"An epoch is {times} faster, {shared:.1f}x fewer rows are read, and the search is earned "
        f"back after {earned:.1f} epochs."
    )


# As a picture -----------------------------------------------------------------------------------


def check_plot(path: str) -> None:
    """Raises `DatasetError` or OSError unless `path` can be drawn to; before the training."""
    check_output(path, PICTURES, "--plot")
    with needed_by("--plot"):
        import matplotlib.figure  # noqa: F401


def plot(result: Comparison, path: str) -> None:
    """Draws the losses of both sides, and the seconds of their epochs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    loss, seconds = figure.subplots(1, 2)
    for name, run, style in ((f"stock {_framework(result)}", result.stock, "-"),
                             ("accelerated", result.accelerated, "--")):  # fmt: skip
        epochs = range(1, len(run.losses) + 1)
        loss.plot(epochs, run.losses, style, label=name)
        seconds.plot(epochs, run.epoch_seconds, style, label=name)
    loss.set(xlabel="epoch", ylabel="training loss", title=result.data.name)
    seconds.set(xlabel="epoch", ylabel="seconds an epoch", ylim=(0, None))
    seconds.set_title(f"median {result.speedup:.1f}x faster")
    loss.legend()
    with whole_file(path) as file:
        figure.savefig(file, format=Path(path).suffix[1:].lower(), dpi=150)
