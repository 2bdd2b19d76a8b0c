"""Plots of what was measured, SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .results import Record
from .sides import AUTO, COPY, NONE, SIDES
from .tables import median, over

# Okabe and Ito's colours, which people with any colour vision tell apart.
COLOURS = {
    COPY: "#999999",
    AUTO: "#d55e00",
    NONE: "#e69f00",
    "DGL": "#0072b2",
    "torch CSR (MKL)": "#56b4e9",
    "torch CSR reduce": "#a6dcef",
    "torch_scatter": "#cc79a7",
    "torch_scatter scatter": "#e5bcd3",
    "pyg-lib segment_csr": "#6a3d9a",
    "pyg-lib scatter": "#b39ddb",
    "PyG gather + scatter": "#009e73",
    "PyG EdgeIndex.matmul": "#7fcfb7",
}
MODELS = {"GCN": ("#d55e00", "o"), "SAGE-mean": ("#0072b2", "s"), "GIN": ("#009e73", "^")}
PASSES = {"training": "full", "inference": "none"}  # how markers are filled


def draw(suites: dict[str, Sequence[Record]], folder: Path) -> list[str]:
    """Writes the plots there is something for, as SVG; returns their file names."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        return []
    drawn = []
    for name, plot in PLOTS.items():
        with rc_context({"svg.hashsalt": "hag_plugin"}):  # the same plot is the same bytes
            figure = Figure(figsize=(11, 5.5), layout="constrained")
            if plot(figure, suites):
                figure.savefig(folder / name, metadata={"Date": None})
                drawn.append(name)
    return drawn


def _aggregate(figure: Any, suites: dict[str, Sequence[Record]]) -> bool:
    """Speed against DGL, reused buffers, at the one setting that most graphs have."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in suites["aggregate"]:
        if record["forms"]:
            cell = record["cell"]
            groups.setdefault((cell["loops"], cell["width"], cell["reduce"]), []).append(record)
    if not groups:
        return False
    (loops, width, reduce), records = max(
        groups.items(), key=lambda item: (len(item[1]), item[0] == ("A+I", 64, "sum"))
    )
    base = "DGL" if all(median(r, "fresh", "DGL") is not None for r in records) else NONE
    shown = [s for s in SIDES if any(median(r, "fresh", s) is not None for r in records)]
    bar = 0.84 / len(shown)
    axes = figure.subplots()
    for number, side in enumerate(shown):
        ratios = [over(r, "fresh", base, side) for r in records]
        places = [i + (number - len(shown) / 2 + 0.5) * bar for i in range(len(records))]
        pairs = [(p, ratio) for p, ratio in zip(places, ratios, strict=True) if ratio is not None]
        axes.bar(*zip(*pairs, strict=True), bar, label=side, color=COLOURS.get(side))
    axes.set_yscale("log")
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(records)), [r["cell"]["graph"] for r in records], rotation=40,
                    ha="right")  # fmt: skip
    axes.set_ylabel(f"speed, {base} = 1 (log)")
    axes.set_title(f"{reduce} over {loops}, width {width}, fresh outputs; {len(records)} graphs")
    figure.legend(ncols=6, fontsize=8, loc="outside lower center")
    return True


def _epochs(figure: Any, suites: dict[str, Sequence[Record]]) -> bool:
    """Epochs: speed against DGL, or against "none" where DGL is absent; a panel for each graph."""
    records = [r for r in suites["epochs"] if r["forms"]]
    if not records:
        return False
    base = "DGL" if any(median(r, "fresh", "DGL") is not None for r in records) else NONE
    names = list(dict.fromkeys(r["cell"]["graph"] for r in records))
    panels = figure.subplots(-(-len(names) // 3), min(len(names), 3), sharey=True, squeeze=False)
    for axes, name in zip(panels.flat, names, strict=False):
        lines: dict[tuple[str, str], list[tuple[int, float]]] = {}
        for record in records:
            cell, ratio = record["cell"], over(record, "fresh", base, AUTO)
            if cell["graph"] == name and ratio is not None:
                lines.setdefault((cell["model"], cell["mode"]), []).append((cell["hidden"], ratio))
        for (model, mode), points in sorted(lines.items()):
            colour, marker = MODELS.get(model, (None, "o"))
            axes.plot(*zip(*sorted(points), strict=True), color=colour, marker=marker,
                      fillstyle=PASSES.get(mode, "full"), linewidth=1,
                      linestyle="-" if mode == "training" else ":",
                      label=f"{model}, {mode}")  # fmt: skip
        axes.axhline(1.0, color="black", linewidth=0.8)
        widths = sorted({width for points in lines.values() for width, _ in points})
        axes.set_xscale("log", base=2)
        axes.set_xticks(widths, [str(width) for width in widths])
        axes.set_xlabel("hidden features", fontsize=9)
        axes.set_title(name, fontsize=10)
    for axes in panels.flat[len(names) :]:
        axes.set_axis_off()
    found = {label: line for axes in panels.flat[: len(names)]
             for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}  # fmt: skip
    figure.legend(list(found.values()), list(found), ncols=6, fontsize=8,
                  loc="outside lower center")  # fmt: skip
    figure.supylabel(f"speed of hag auto, {base} = 1", fontsize=10)
    figure.suptitle(f"whole epochs, {len(records)} cells")
    return True


def _search(figure: Any, suites: dict[str, Sequence[Record]]) -> bool:
    """Seconds of search by number of edges."""
    records = suites["search"]
    if not records:
        return False
    axes = figure.subplots()
    labels: dict[str, tuple[float, float]] = {}
    for loops, marker, colour in (("A", "o", "#0072b2"), ("A+I", "^", "#d55e00")):
        chosen = [r for r in records if r["cell"]["loops"] == loops]
        edges = [max(r["graph"]["edges"], 1) for r in chosen]
        seconds = [r["seconds"] for r in chosen]
        axes.scatter(edges, seconds, marker=marker, color=colour, label=loops)
        for record, *point in zip(chosen, edges, seconds, strict=True):
            highest = max(point[1], labels.get(record["cell"]["graph"], (0, 0))[1])
            labels[record["cell"]["graph"]] = point[0], highest
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("directed edges")
    axes.set_ylabel("seconds of search")
    axes.set_title(f"search, {len(labels)} graphs")
    axes.legend()
    _label(axes, labels)
    return True


def _label(axes: Any, labels: dict[str, tuple[float, float]]) -> None:
    """Names above points; where they would overlap, those of the lower points are left out."""
    taken: list[Any] = []
    axes.figure.draw_without_rendering()
    for name, point in sorted(labels.items(), key=lambda item: -item[1][1]):
        text = axes.annotate(
            name, point, (0, 5), textcoords="offset points", fontsize=7, ha="center"
        )
        box = text.get_window_extent().expanded(1.05, 1.5)
        if any(box.overlaps(other) for other in taken):
            text.remove()
        else:
            taken.append(box)


def _never_slower(figure: Any, suites: dict[str, Sequence[Record]]) -> bool:
    """How often "auto" is how much faster than "none", by instruction set and constants."""
    timed = [r for r in suites["never-slower"] if r.get("ratio") is not None]
    axes = figure.subplots()
    keys = ("instruction_set", "constants")
    settings = dict.fromkeys(tuple(r["cell"][key] for key in keys) for r in timed)
    for setting in settings:
        ratios = sorted(r["ratio"] for r in timed if tuple(r["cell"][k] for k in keys) == setting)
        words = ", constants ".join(setting)
        axes.plot(range(len(ratios)), ratios, label=f"{words}; {len(ratios)} cells")
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.axhline(0.97, color="black", linewidth=0.8, linestyle=":")
    axes.set_yscale("log")
    axes.set_xlabel("cells that were timed, from the slowest")
    axes.set_ylabel("time of none / time of auto (log)")
    if timed:
        axes.legend()
    return bool(timed)


PLOTS = {
    "aggregate.svg": _aggregate,
    "epochs.svg": _epochs,
    "search.svg": _search,
    "never_slower.svg": _never_slower,
}
