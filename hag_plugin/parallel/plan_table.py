"""The table of a plan that a person reads. Every figure in it is predicted."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hag_plugin.parallel.planner import LayerPlan, Plan

QUIET = ("elementwise", "input", "sum", "concatenation", "loss")
HEAD = ("layer", "strategy", "HAG", "compute", "comm", "sync", "sent", "memory")


def table(plan: Plan) -> str:
    """The layers, then the whole beside plans that treat all layers alike."""
    shown = [k for k in plan.layers if not (k.kind in QUIET and k.seconds.communication == 0)]
    rest = [k for k in plan.layers if k not in shown]
    rows = [HEAD, *(_row(layer) for layer in shown)]
    if rest:
        rows.append(
            (
                f"{len(rest)} others",
                "where their inputs lie",
                "",
                milliseconds(sum(k.seconds.compute for k in rest)),
                milliseconds(0.0),
                milliseconds(sum(k.seconds.synchronisation for k in rest)),
                size(max(k.sent for k in rest)),
                size(sum(k.memory for k in rest)),
            )
        )
    widths = [max(len(row[c]) for row in rows) for c in range(len(HEAD))]
    lines = [
        f"{plan.model[0] or 'model'} on {plan.topology}, {plan.world_size} devices, "
        f"{plan.nodes:,} nodes. All figures are predicted ({plan.costs} costs).",
        "",
    ]
    for row in rows:
        cells = [
            text.ljust(w) if c < 3 else text.rjust(w)
            for c, (text, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    memory = plan.memory
    lines += [
        "",
        f"predicted: {milliseconds(plan.seconds)} ms a training step, optimal under the additive "
        "cost (nothing overlaps)",
        f"predicted memory: {size(memory.total)} on the fullest device ({size(memory.retained)} "
        f"kept, {size(memory.transient)} passing, {size(memory.graph)} graph)",
    ]
    for name, seconds in plan.baselines.items():
        ratio = seconds / plan.seconds if plan.seconds else 1.0
        lines.append(f"predicted, {name}: {milliseconds(seconds)} ms ({ratio:.2f}x)")
    return "\n".join(lines)


def _row(layer: LayerPlan) -> tuple[str, ...]:
    config = layer.config
    words = [config.strategy, f"{config.source} > {config.target}"]
    if config.order:
        words.append(config.order)
    return (
        layer.name,
        ", ".join(words),
        config.hag,
        milliseconds(layer.seconds.compute),
        milliseconds(layer.seconds.communication),
        milliseconds(layer.seconds.synchronisation),
        size(layer.sent),
        size(layer.memory),
    )


def milliseconds(seconds: float) -> str:
    """Three significant figures."""
    return f"{seconds * 1e3:#.3g}" if 0 < seconds < 1 else f"{seconds * 1e3:.0f}"


def size(nbytes: float) -> str:
    """In binary units."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    steps = 0
    while nbytes >= 1024 and steps < len(units) - 1:
        nbytes, steps = nbytes / 1024, steps + 1
    return f"{nbytes:.0f} B" if steps == 0 else f"{nbytes:.3g} {units[steps]}"
