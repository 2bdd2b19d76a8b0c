"""What the scripts of both papers share: their options, their tables, their JSON."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from hag_plugin.parallel.machine.topology import Topology, preset

from .flexflow_evaluate import Outcome
from .flexflow_model import SUMMED
from .flexflow_published import Figure

LINKS = ("published", "released")
RELEASED = (4 * 2**30, 2**30)  # bytes a second, in a node and between nodes


@dataclass
class Evaluation:
    """One network on one machine.

    Attributes:
        network: its name.
        machine: its name.
        batch: samples of an iteration.
        summed: how gradients are.
        rows: the strategies; the last is what was searched for.
        facts: of the search.
        failures: what should hold and does not.
    """

    network: str
    machine: str
    batch: int
    summed: str
    rows: list[Outcome]
    facts: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Setting:
    """What is evaluated.

    Attributes:
        network: its name.
        machine: "P100" or "K80".
        devices: how many of the cluster's.
        links: "published", or as "released": see `machine`.
        summed: how gradients are, see `SoapModel`.
        proposals: of MCMC.
        seed: of MCMC.
    """

    network: str
    machine: str = "P100"
    devices: int = 16
    links: str = "published"
    summed: str = "server"
    proposals: int = 1000
    seed: int = 0

    @property
    def topology(self) -> Topology:
        """The machine."""
        return machine(self.machine, self.devices, self.links)


def machine(name: str, devices: int, links: str = "published") -> Topology:
    """A cluster of the papers, with fewer devices.

    With "released" links, messages get the bandwidths that the authors' released simulator has
    (scripts/simulator.cc of FlexFlow): 4 and 1 GiB/s, which is far below what P100's links can do,
    and each pair of devices a link of its own.
    """
    found = preset({"P100": "p100x16", "K80": "k80x64"}[name]).resized(devices)
    if links == "published":
        return found
    levels = tuple(
        replace(level, bandwidth=float(rate), efficiency=1.0, of_devices=True, shape="pairs")
        for level, rate in zip(found.levels, RELEASED, strict=False)
    )
    return replace(found, name=f"{found.name}, released links", levels=levels)


def settings(args: argparse.Namespace) -> list[Setting]:
    """What the options ask for."""
    return [
        Setting(network, args.machine, devices, args.links, args.summed, args.proposals, args.seed)
        for network in args.network
        for devices in args.devices
    ]


def arguments(
    words: str | None, networks: Iterable[str], given: Sequence[str] | None, *,
    devices: list[int], sampled: bool = False,
) -> argparse.Namespace:  # fmt: skip
    """The options; exits where they are wrong."""
    parser = argparse.ArgumentParser(
        description=words, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = list(networks)
    parser.add_argument(
        "--network", action="append", choices=names, help="one or more; default all"
    )
    parser.add_argument("--devices", action="append", type=int, choices=[1, 2, 4, 8, 16, 32, 64],
                        help=f"GPUs, four a node; default {devices}")  # fmt: skip
    parser.add_argument("--summed", choices=SUMMED, default="server",
                        help="gradients: by a server a weight, as in the papers (default), or in a "
                             "ring, as NCCL does")  # fmt: skip
    parser.add_argument("--links", choices=LINKS, default="published", help="of P100: as published "
                        "(default), or as in FlexFlow's released simulator")  # fmt: skip
    parser.set_defaults(machine="P100", proposals=0, seed=0)
    if sampled:
        parser.add_argument("--machine", choices=["P100", "K80"], default="P100")
        parser.add_argument("--proposals", type=int, default=None, help="of MCMC; default 1000")
        parser.add_argument("--seed", type=int, default=0, help="of MCMC (default 0)")
    parser.add_argument("--quick", action="store_true",
                        help="4 GPUs and few proposals: a minute in all")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="results as JSON on stdout")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args(given)
    args.network = args.network or names
    args.devices = args.devices or ([4] if args.quick else devices)
    if sampled:
        args.proposals = args.proposals or (120 if args.quick else 1000)
        if args.proposals < 0:
            parser.error(f"--proposals is {args.proposals}; expected 0 or more")
    if args.machine != "P100" and args.links != "published":
        parser.error("--links released are P100's")
    return args


def finish(evaluations: list[Evaluation], published: Sequence[Figure], args: Any) -> int:
    """Prints all results; returns the exit code, 1 where something did not hold."""
    failures = [f"{e.network}, {e.machine}: {f}" for e in evaluations for f in e.failures]
    if args.json:
        document = {
            "evaluations": [asdict(e) for e in evaluations],
            "published": [asdict(figure) for figure in published],
            "labels": "evaluations are simulated; published figures are the papers'",
        }
        print(json.dumps(document, indent=2, allow_nan=False))
    else:
        for evaluation in evaluations:
            print(_text(evaluation), end="\n\n")
        print("Published, not measured here:")
        for figure in published:
            print(f"  {figure.what}: {figure.value} ({figure.where})")
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _text(e: Evaluation) -> str:
    lines = [f"{e.network} on {e.machine}, batch {e.batch}, gradients by {e.summed} (simulated)"]
    lines.append(f"  {'strategy':<18}{'additive ms':>12}{'simulated ms':>14}{'GB sent':>10}"
                 f"{'others over ours':>18}")  # fmt: skip
    ours = e.rows[-1]
    for row in e.rows:
        additive = "-" if row.additive is None else f"{row.additive * 1e3:.1f}"
        lines.append(f"  {row.name:<18}{additive:>12}{row.simulated * 1e3:>14.1f}"
                     f"{row.gigabytes:>10.2f}{row.simulated / ours.simulated:>17.2f}x")  # fmt: skip
    for key, value in e.facts.items():
        if not isinstance(value, dict | list):
            text = f"{value:.3g}" if isinstance(value, float) else str(value)
            lines.append(f"  {key.replace('_', ' ')}: {text}")
    return "\n".join(lines)
