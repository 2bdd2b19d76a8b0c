"""Markdown tables of what was measured."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from . import published, suite_epochs, suite_layers
from .plan import LAYER_GRAPHS
from .results import Record
from .sides import AUTO, COPY, NONE, SIDES, is_ours

FORMS = {
    "reused": "all sides write into the same buffer",
    "fresh": "all sides allocate their output (stock allocator)",
}

SPREAD = ("", "cells", "least", "median", "geometric mean", "most")


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the first column is text, the others are numbers."""
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def geometric_mean(values: Iterable[float]) -> float | None:
    """The geometric mean; None of nothing."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else None


def duration(seconds: float | None) -> str:
    """Milliseconds with three digits that count."""
    return "-" if seconds is None else f"{seconds * 1e3:#.3g}".rstrip(".")


def times(ratio: float | None) -> str:
    """A ratio, as in 2.31x."""
    return "-" if ratio is None else f"{ratio:.2f}x"


# One cell ---------------------------------------------------------------------------------------


def median(record: Record, form: str, side: str) -> float | None:
    """Seconds of a side; None where it took no part."""
    found = record["forms"].get(form, {}).get("sides", {}).get(side)
    return None if found is None else float(found["median"])


def best_peer(record: Record, form: str) -> tuple[str, float] | None:
    """The fastest side that is neither ours nor the copy, with its seconds."""
    found = record["forms"].get(form, {}).get("sides", {})
    peers = {s: t["median"] for s, t in found.items() if s != COPY and not is_ours(s)}
    return min(peers.items(), key=lambda item: item[1]) if peers else None


def over(record: Record, form: str, slower: str, faster: str) -> float | None:
    """How many times `faster` is faster, by medians; None where one took no part."""
    a, b = median(record, form, slower), median(record, form, faster)
    return None if a is None or b is None else a / b


def over_best(record: Record, form: str, side: str = AUTO) -> float | None:
    """How many times a side is faster than the best peer."""
    peer, own = best_peer(record, form), median(record, form, side)
    return None if peer is None or own is None else peer[1] / own


def spread(name: str, found: Sequence[float], words: Callable[[float], str]) -> list[str]:
    """A row of a table with the head `SPREAD`."""
    if not found:
        return [name, "0", "-", "-", "-", "-"]
    mean = geometric_mean(found)
    assert mean is not None
    return [
        name,
        str(len(found)),
        *map(words, (min(found), statistics.median(found), mean, max(found))),
    ]


def means(records: Iterable[Record], ratio: Any) -> float | None:
    """The geometric mean of a ratio over the records that have it."""
    found = [ratio(record) for record in records]
    return geometric_mean(value for value in found if value is not None)


# Suites -----------------------------------------------------------------------------------------


def aggregate(records: Sequence[Record]) -> str:
    """A table for each width, matrix, reducer and form: milliseconds and ratios."""
    groups: dict[tuple[str, int, str], list[Record]] = {}
    for record in records:
        cell = record["cell"]
        groups.setdefault((cell["loops"], cell["width"], cell["reduce"]), []).append(record)
    parts = []
    for (loops, width, reduce), group in sorted(groups.items()):
        matrix = loops.replace("+", " + ")
        parts.append(f"### {reduce} over {matrix}, width {width}\n")
        for form, words in FORMS.items():
            parts.append(f"Milliseconds, {words}:\n\n{_aggregate_group(group, form)}\n")
    return "\n".join([*parts, _absences(records)])


def _aggregate_group(group: Sequence[Record], form: str) -> str:
    measured = [r for r in group if r["forms"]]
    shown = [s for s in SIDES if any(median(r, form, s) is not None for r in measured)]
    header = ["graph", "rows read", *shown, "auto / best peer", "auto / DGL", "none / DGL",
              "auto / none", "auto's time / copy", "A/A"]  # fmt: skip
    rows = []
    for record in measured:
        saved = record["saved"]
        peer = best_peer(record, form)
        control = record["forms"][form]["control"]
        rows.append([
            record["cell"]["graph"],
            times(saved["rows_read_before"] / max(saved["rows_read"], 1)) + " fewer",
            *[_cell_text(record, form, side, peer) for side in shown],
            *[times(ratio(record, form)) for ratio in RATIOS],
            f"{control['ratio']:.2f} ± {control['spread']:.2f}",
        ])  # fmt: skip
    mean = [times(means(measured, lambda r, f=ratio: f(r, form))) for ratio in RATIOS]
    rows.append(["geometric mean", *[""] * (len(shown) + 1), *mean, ""])
    return markdown(header, rows)


RATIOS = (
    over_best,
    lambda record, form: over(record, form, "DGL", AUTO),
    lambda record, form: over(record, form, "DGL", NONE),
    lambda record, form: over(record, form, NONE, AUTO),
    lambda record, form: over(record, form, AUTO, COPY),
)


def _cell_text(record: Record, form: str, side: str, peer: tuple[str, float] | None) -> str:
    seconds = median(record, form, side)
    if seconds is None:
        return "n/a"
    text = duration(seconds)
    return f"**{text}**" if peer is not None and side == peer[0] else text


def _absences(records: Sequence[Record]) -> str:
    lines = sorted({
        f"- {side}{_where(record, why)}: {why}."
        for record in records for side, why in record.get("absent", {}).items()
    })  # fmt: skip
    return "Left out (n/a in the tables; n/a also where a peer cannot write into a buffer):\n\n" + (
        "\n".join(lines) + "\n" if lines else "- nothing.\n"
    )


def _where(record: Record, why: str) -> str:
    """What of its cell decides that a side is left out."""
    if "crashed" in why:
        return " in " + " ".join(map(str, record["cell"].values()))
    return f" on {record['cell']['graph']}" if "memory" in why or "GB" in why else ""


def least_and_median(values: Sequence[float]) -> str:
    """As in 0.91x, median 1.20x."""
    return f"{times(min(values))}, median {times(statistics.median(values))}"


def epochs(records: Sequence[Record]) -> str:
    """A table for each model."""
    parts = []
    shown = list(suite_epochs.SIDES)
    for model in dict.fromkeys(record["cell"]["model"] for record in records):
        header = ["graph", "hidden", "mode", *shown, "auto / stock PyG", "auto / DGL",
                  "auto / none", "auto / best peer", "A/A", "auto / better of HAG and none",
              "verdict"]  # fmt: skip
        rows = []
        for record in records:
            cell = record["cell"]
            if cell["model"] != model or not record["forms"]:
                continue
            peer = best_peer(record, "fresh")
            ratios = [over(record, "fresh", s, AUTO) for s in (suite_epochs.STOCK, "DGL", NONE)]
            control = record["forms"]["fresh"]["control"]
            rows.append([
                cell["graph"], str(cell["hidden"]), cell["mode"],
                *[_cell_text(record, "fresh", side, peer) for side in shown],
                *[times(ratio) for ratio in (*ratios, over_best(record, "fresh"))],
                f"{control['ratio']:.2f} ± {control['spread']:.2f}", *_choice(record),
            ])  # fmt: skip
        parts.append(f"### {model}\n\nMilliseconds an epoch:\n\n{markdown(header, rows)}\n")
    return "\n".join([*parts, _absences(records)])


def _choice(record: Record) -> tuple[str, str]:
    """Of an epoch: "auto" against the better of its candidates, and what that says."""
    found = record.get("choice")
    if found is None:
        return "-", "-"
    ratio = f"{found['ratio']:.3f} ± {found['spread']:.3f} ({found['better']})"
    return ratio, f"{found['verdict']} ({found['attempts']})"


def layers(records: Sequence[Record]) -> str:
    """A table for each graph and width: what each layer gains, and when it may."""
    if not records:
        return ""
    from hag_plugin.pyg import layers as eligible_layers

    conditions = {row.name: row.eligible_when for row in eligible_layers()}
    header = ["layer", "eligible when", "stock, ms", "auto, ms", "auto / edge_index",
              "auto / best sparse", "peak memory, auto / stock", "A/A"]  # fmt: skip
    groups: dict[tuple[str, int], list[Record]] = {}
    for record in records:
        if record["forms"]:
            cell = record["cell"]
            groups.setdefault((cell["graph"], cell["width"]), []).append(record)
    parts = ["One call, forward and backward. Layers are eligible under the conditions given; "
             "beside these, where the aggregation follows from sums and extrema.\n"]  # fmt: skip
    for (graph, width), group in groups.items():
        if graph in LAYER_GRAPHS:
            rows = [
                _layer_row(record, conditions.get(record["cell"]["layer"], "never: runs as before"))
                for record in group
            ]
            parts.append(f"### {graph}, width {width}\n\n{markdown(header, rows)}\n")
    others = [r for key, group in groups.items() if key[0] not in LAYER_GRAPHS for r in group]
    if others:
        parts.append(_layers_by_graph(others))
    return "\n".join([*parts, _timed_twice(records), _absences(records)])


def _layers_by_graph(records: Sequence[Record]) -> str:
    """A line a layer, a column a graph: stock's time over ours."""
    found: dict[str, dict[str, str]] = {}
    for record in records:
        timed = record["forms"]["fresh"]
        text = times(over(record, "fresh", suite_layers.STOCK, AUTO))
        if suite_layers.is_slower(timed):
            text = f"**{text}**"
        elif timed["sides"][suite_layers.STOCK]["median"] <= suite_layers.LEAST:
            text = f"({text})"
        found.setdefault(record["cell"]["layer"], {})[record["cell"]["graph"]] = text
    graphs = list(dict.fromkeys(record["cell"]["graph"] for record in records))
    rows = [[layer, *[by_graph.get(g, "n/a") for g in graphs]] for layer, by_graph in found.items()]
    return (
        "### auto / edge_index on other graphs\n\nIn brackets: stock takes 1 ms or less. Bold: "
        f"slower by more than 5 % and the A/A spread.\n\n{markdown(['layer', *graphs], rows)}\n"
    )


def _timed_twice(records: Sequence[Record]) -> str:
    lines = []
    for record in records:
        if "first" in record["forms"]:
            layer, graph = record["cell"]["layer"], record["cell"]["graph"]
            first, then = (
                times(over(record, form, suite_layers.STOCK, AUTO)) for form in ("first", "fresh")
            )
            lines.append(f"- {layer} on {graph}: {first}, then {then}.")
    if not lines:
        return ""
    return (
        "Slower the first time, beyond the spread, and so timed twice:\n\n"
        + "\n".join(lines)
        + "\n"
    )


def _layer_row(record: Record, eligible: str) -> list[str]:
    stock, csr = suite_layers.STOCK, suite_layers.CSR
    control, memory = record["forms"]["fresh"]["control"], record["memory"]
    return [
        record["cell"]["layer"], eligible,
        *[duration(median(record, "fresh", side)) for side in (stock, AUTO)],
        *[times(over(record, "fresh", side, AUTO)) for side in (stock, csr)],
        f"{memory[AUTO] / max(memory[stock], 1):.2f}",
        f"{control['ratio']:.2f} ± {control['spread']:.2f}",
    ]  # fmt: skip


def search(records: Sequence[Record], epoch_records: Sequence[Record]) -> str:
    """What building costs, and when that is earned back."""
    header = ["graph", "matrix", "edges", "seconds", "M edges / s", "rows read",
              "memory, MB", "epochs to earn back (none)", "(stock PyG)"]  # fmt: skip
    rows = []
    for record in records:
        saved, growth = record["saved"], record["memory_growth"]
        back = record["epochs_to_earn_back"]
        rows.append([
            record["cell"]["graph"], record["cell"]["loops"].replace("+", " + "),
            f"{record['graph']['edges']:,}", f"{record['seconds']:#.3g}",
            f"{record['edges_per_second'] / 1e6:.2f}",
            times(saved["rows_read_before"] / max(saved["rows_read"], 1)) + " fewer",
            "-" if growth is None else f"{growth / 1e6:.0f}",
            "never" if back is None else f"{back:,.1f}",
            _earned_back_on_stock(record, epoch_records),
        ])  # fmt: skip
    note = (
        "Epochs to earn back: training epochs of a 2-layer GCN (four aggregations) until the search"
        ' is paid for; against "none" by the aggregation\'s own saving at width 64, against stock '
        "PyG by whole epochs at hidden 64, where these were measured."
    )
    return markdown(header, rows) + "\n\n" + note + "\n"


def _earned_back_on_stock(record: Record, epoch_records: Sequence[Record]) -> str:
    wanted = {"graph": record["cell"]["graph"], "hidden": 64, "mode": "training", "model": "GCN"}
    if record["cell"]["loops"] != "A+I":
        wanted["model"] = "SAGE-mean"
    for epoch in epoch_records:
        if epoch["cell"] == wanted:
            stock = median(epoch, "fresh", suite_epochs.STOCK)
            ours = median(epoch, "fresh", AUTO)
            if stock is not None and ours is not None and stock > ours:
                return f"{record['seconds'] / (stock - ours):,.2f}"
    return "-"


def wrong(records: Mapping[str, Sequence[Record]], ours: bool) -> list[str]:
    """A line for each side, of ours or of the peers, that did not agree with the plain program."""
    return [
        f"{suite}, {' '.join(map(str, record['cell'].values()))}: {side} {why}"
        for suite, found in records.items()
        for record in found
        for side, why in record["wrong"].items()
        if is_ours(side) == ours
    ]


def cbm() -> str:
    """CBM's published figures."""
    rows = [[f.what, f.value, f.where] for f in published.CBM]
    return markdown(["figure", "value", "where"], rows) + f"\n\n{published.CBM_SOURCE}\n"
