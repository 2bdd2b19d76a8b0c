"""`hag-plugin calibrate`: the constants of the cost model, measured on this machine."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hag_plugin import files
from hag_plugin.cli.options import add_command, positive
from hag_plugin.cli.output import print_result
from hag_plugin.files import DatasetError
from hag_plugin.hag import calibration, constants
from hag_plugin.hag.rates import DEFAULT, Constants
from hag_plugin.progress import shares
from hag_plugin.provenance import machine, package_versions

SOURCES = {
    "environment": f"from {{path}}, which {constants.PATH_VARIABLE} names",
    "own file": "measured by `hag-plugin calibrate`, from {path}",
    "cache": "measured when they were first needed, from {path}",
    "measured": "measured just now, kept in {path}",
    "default": f"the defaults, since {constants.PATH_VARIABLE} is empty",
}

LEGEND = """\
In nanoseconds: call, one aggregation; op, one sum of rows; written, a byte of results that the
cache does not hold; a row of partial sums (scratch), of features in the cache (near) or beyond it
(far): so much (fixed), and so much a byte; and so much more for a row of a half type (half), and
for max and min (extremum); so much more for a byte that comes from main memory though it was read
before (memory). Others: parallel, what each further thread adds, of a thread; cache_bytes, of the
cache, and last_bytes, of the last-level one; error, by how much of itself a prediction may be
off."""


def add(commands: Any) -> None:
    """Adds `calibrate` to the commands."""
    parser = add_command(
        commands,
        "calibrate",
        run,
        "Measure the constants of the cost model on this machine, at length. There is no need to: "
        "the first search measures them in about a second and leaves them in the user's cache "
        "folder. Those of this command are taken instead, for as long as the processor stays: "
        "from the file that HAG_PLUGIN_COSTS names, or else from hag_plugin/costs.json in the "
        "user's configuration folder. Have nothing else run meanwhile.",
        ["", "--show", "--output costs.json --json"],
    )
    parser.add_argument("--output", metavar="FILE", help="where to write instead")
    parser.add_argument(
        "--rounds", type=positive, default=15, metavar="N",
        help="runs of each program; the shortest counts (default 15)",
    )  # fmt: skip
    parser.add_argument(
        "--show", action="store_true",
        help="print the constants in force and where they are from, and end",
    )  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Measures the constants and writes them where searches look for them."""
    if args.show:
        _show(args)
        return
    path = Path(args.output) if args.output else constants.path_in_force()
    if path is None:
        raise DatasetError(
            f"{constants.PATH_VARIABLE} is empty, which stands for the defaults; expected a file "
            "in it, or --output FILE"
        )
    if not args.output:
        path.parent.mkdir(parents=True, exist_ok=True)
    files.check_output(path)
    with shares("calibrating", not args.quiet) as report:
        found = calibration.calibrate(args.rounds, report=report)
    result = {"output": str(path), "digest": found.constants.digest, **asdict(found)}
    measured = result.pop("constants")
    about = {**result, "machine": machine(), "versions": package_versions()}
    constants.write_constants(path, found.constants, about)
    text = (
        f"{_table(found.constants)}\n\n"
        f"Predicted against measured, {found.cases} programs: mean error {found.mean_error:.0%}, "
        f"largest {found.largest_error:.0%}. Written to {path}."
    )
    print_result(args, {**result, "constants": measured}, text)


def _show(args: argparse.Namespace) -> None:
    found = constants.found()
    path = None if found.path is None else str(found.path)
    where = SOURCES[found.source].format(path=path or "memory alone")
    result = {
        "source": found.source,
        "path": path,
        "digest": found.constants.digest,
        "constants": asdict(found.constants),
    }
    text = f"{_table(found.constants, 'in force')}\n\n{LEGEND}\n\nIn force: {where}."
    print_result(args, result, text)


def _table(found: Constants, title: str = "this machine") -> str:
    """Constants beside the defaults."""
    values, default = _flat(asdict(found)), _flat(asdict(DEFAULT))
    lines = [f"{'nanoseconds':<18}{title:>14}{'default':>14}"]
    for name, value in values.items():
        unit = 1.0 if name in ("parallel", "cache_bytes", "last_bytes", "error") else 1e9
        lines.append(f"{name:<18}{value * unit:>14,.4g}{default[name] * unit:>14,.4g}")
    return "\n".join(lines)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    out: dict[str, float] = {}
    for key, value in values.items():
        out |= _flat(value, f"{key}.") if isinstance(value, dict) else {prefix + key: value}
    return out
