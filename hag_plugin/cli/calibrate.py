"""`hag-plugin calibrate`: the constants of the cost model, measured on this machine."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from hag_plugin import files
from hag_plugin.cli import calibration
from hag_plugin.cli.options import add_command, positive
from hag_plugin.cli.output import machine, package_versions, print_result
from hag_plugin.files import DatasetError
from hag_plugin.hag import constants


def add(commands: Any) -> None:
    """Adds `calibrate` to the commands."""
    parser = add_command(
        commands,
        "calibrate",
        run,
        "Measure the constants of the cost model on this machine, once. Every search reads them "
        "from then on: from the file that HAG_PLUGIN_COSTS names, or else from "
        "hag_plugin/costs.json in the user's configuration folder. Have nothing else run "
        "meanwhile.",
        ["", "--output costs.json --json"],
    )
    parser.add_argument("--output", metavar="FILE", help="where to write instead")
    parser.add_argument(
        "--rounds", type=positive, default=15, metavar="N",
        help="runs of each program; the shortest counts (default 15)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="results as JSON on stdout")


def run(args: argparse.Namespace) -> None:
    """Measures the constants and writes them where searches look for them."""
    path = Path(args.output) if args.output else constants.path_in_force()
    if path is None:
        raise DatasetError(
            f"{constants.PATH_VARIABLE} is empty, which stands for the defaults; expected a file "
            "in it, or --output FILE"
        )
    if not args.output:
        path.parent.mkdir(parents=True, exist_ok=True)
    files.check_output(path)
    with tqdm(
        total=1.0,
        disable=args.quiet,
        leave=False,
        file=sys.stderr,
        bar_format="calibrating: {percentage:3.0f}% |{bar}| {elapsed} < {remaining}",
    ) as bar:
        found = calibration.calibrate(args.rounds, report=lambda share: bar.update(share - bar.n))
    result = {"output": str(path), "digest": found.constants.digest, **asdict(found)}
    measured = result.pop("constants")
    about = {**result, "machine": machine(), "versions": package_versions()}
    constants.write_constants(path, found.constants, about)
    text = f"{calibration.table(found)} Written to {path}."
    print_result(args, {**result, "constants": measured}, text)
