"""Plots of what was measured, PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .results import Record
from .sides import AUTO, COPY, NONE, SIDES
from .tables import median, over

COLOURS = {
    COPY: "#b0b0b0",
    AUTO: "#c0392b",
    NONE: "#e59866",
    "DGL": "#1f4e79",
    "torch CSR (MKL)": "#5dade2",
    "torch CSR reduce": "#aed6f1",
    "torch_scatter": "#7d6608",
    "torch_scatter scatter": "#b7950b",
    "pyg-lib segment_csr": "#6c3483",
    "pyg-lib scatter": "#a569bd",
    "PyG gather + scatter": "#229954",
    "PyG EdgeIndex.matmul": "#82e0aa",
}


def draw(suites: dict[str, Sequence[Record]], folder: Path) -> list[str]:
    """Writes the plots there is something for; returns their file names."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as pyplot
    except ImportError:
        return []
    drawn = []
    for name, plot in PLOTS.items():
        figure, axes = pyplot.subplots(figsize=(11, 5.5), layout="constrained")
        if plot(axes, suites):
            figure.savefig(folder / name, dpi=120)
            drawn.append(name)
        pyplot.close(figure)
    return drawn


def _aggregate(axes: Any, suites: dict[str, Sequence[Record]]) -> bool:
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
    axes.set_title(f"{reduce} over {loops}, width {width}, fresh outputs")
    axes.legend(ncols=4, fontsize=8)
    return True


def _epochs(axes: Any, suites: dict[str, Sequence[Record]]) -> bool:
    """Epochs: speed against DGL, or against "none" where DGL is absent."""
    records = [r for r in suites["epochs"] if r["forms"]]
    if not records:
        return False
    names = [" ".join(str(v) for v in r["cell"].values()) for r in records]
    base = "DGL" if any(median(r, "fresh", "DGL") is not None for r in records) else NONE
    ratios = [over(r, "fresh", base, AUTO) or float("nan") for r in records]
    colours = {"GCN": "#c0392b", "SAGE-mean": "#2471a3", "GIN": "#229954"}
    models = [r["cell"]["model"] for r in records]
    for model in dict.fromkeys(models):
        chosen = [i for i, found in enumerate(models) if found == model]
        axes.bar(chosen, [ratios[i] for i in chosen], label=model, color=colours.get(model))
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_yscale("log")
    size = 8 if len(names) < 40 else 5
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
    axes.set_ylabel(f"hag auto, speed, {base} = 1 (log)")
    axes.set_title("whole epochs")
    axes.legend()
    return True


def _search(axes: Any, suites: dict[str, Sequence[Record]]) -> bool:
    """Seconds of search by number of edges."""
    records = suites["search"]
    for loops, marker in (("A", "o"), ("A+I", "^")):
        chosen = [r for r in records if r["cell"]["loops"] == loops]
        edges = [max(r["graph"]["edges"], 1) for r in chosen]
        axes.scatter(edges, [r["seconds"] for r in chosen], marker=marker, label=loops)
        for record, x in zip(chosen, edges, strict=True):
            axes.annotate(record["cell"]["graph"], (x, record["seconds"]), fontsize=6)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("directed edges")
    axes.set_ylabel("seconds of search")
    axes.legend()
    return bool(records)


def _never_slower(axes: Any, suites: dict[str, Sequence[Record]]) -> bool:
    """How often "auto" is how much faster than "none", by instruction set and constants."""
    timed = [r for r in suites["never-slower"] if r.get("ratio") is not None]
    keys = ("instruction_set", "constants")
    settings = dict.fromkeys(tuple(r["cell"][key] for key in keys) for r in timed)
    for setting in settings:
        ratios = sorted(r["ratio"] for r in timed if tuple(r["cell"][k] for k in keys) == setting)
        axes.plot(range(len(ratios)), ratios, label=", constants ".join(setting))
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.axhline(0.97, color="black", linewidth=0.8, linestyle=":")
    axes.set_yscale("log")
    axes.set_xlabel("cells that were timed, from the slowest")
    axes.set_ylabel("time of none / time of auto (log)")
    if timed:
        axes.legend()
    return bool(timed)


PLOTS = {
    "aggregate.png": _aggregate,
    "epochs.png": _epochs,
    "search.png": _search,
    "never_slower.png": _never_slower,
}
