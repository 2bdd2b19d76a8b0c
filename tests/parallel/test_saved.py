"""What is saved or sent names public places only, so that files may move and it still loads."""

from __future__ import annotations

import inspect
import pickle
import pickletools
import pkgutil
import subprocess
import sys
import tempfile
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch_geometric.data import Batch, Data

import hag_plugin.parallel as hpp
from hag_plugin.parallel.model.opgraph import Op, OpGraph, gcn

PUBLIC = {"hag_plugin", "hag_plugin.parallel"}
STATS = hpp.GraphStats.assumed(1000, 20_000, halo_ratio=0.5, hag_parts=0.5)
OPS = [Op("x", "input", width=16), gcn("conv", 0, 16, 8), Op("loss", "loss", (1,), 8)]


@cache
def measured() -> hpp.GraphStats:
    edge_index = torch.randint(60, (2, 400), generator=torch.Generator().manual_seed(0))
    found = hpp.partition(edge_index, 60, 3, "contiguous")
    stats = hpp.measure(edge_index, 60, part=found)
    stats.partition(3)
    return stats


@cache
def graph() -> OpGraph:
    return OpGraph.of(OPS, {"A": STATS})


@cache
def planned() -> hpp.Plan:
    return hpp.plan(graph(), topology="pcie4x4")


def machine() -> hpp.Topology:
    found = hpp.preset("4x8hdr")
    assert found.links  # kept with it
    return found


def refined() -> hpp.Refined:
    space = hpp.space_of(graph(), "pcie4x4")
    return hpp.refine(planned(), space, hpp.Budget(proposals=5))


def refusal() -> hpp.InfeasibleError:
    with pytest.raises(hpp.InfeasibleError) as found:
        hpp.plan(graph(), topology="pcie4x4", memory=1)
    assert found.value.nearest is not None
    return found.value


def batch() -> Any:
    graphs = [Data(torch.ones(n, 1), torch.zeros(2, 1, dtype=torch.int64)) for n in (2, 3, 4)]
    return hpp.by_graph(Batch.from_data_list(graphs))


def sent() -> Any:
    counts = hpp.Sent()
    counts.add("forward", "all_gather", 12)
    return counts


def cut() -> Any:
    data = Data(edge_index=torch.tensor([[0, 1, 2, 3], [1, 0, 3, 1]]), num_nodes=4)
    with tempfile.TemporaryDirectory() as folder:
        hpp.write_partitions(data, 2, f"{folder}/parts")
        return hpp.PartitionedData(f"{folder}/parts", 1)


MADE = {
    "part on disk": cut,
    "counts of parts on disk": lambda: cut().stats,
    "plan": planned,
    "plan of a network": lambda: hpp.plan(torch.nn.Linear(4, 4), torch.ones(4, 4), "a100x8"),
    "topology": machine,
    "partition": lambda: hpp.partition(torch.tensor([[0, 1], [1, 2]]), 3, 2, "contiguous"),
    "counts": lambda: STATS,
    "counts with a partition": measured,
    "counts without HAGs": lambda: measured().without_hags(),
    "counts of what is possible": lambda: STATS.uncounted(),
    "operations": graph,
    "budget": lambda: hpp.Budget(proposals=5),
    "sampled plan": refined,
    "schedule": lambda: hpp.simulate_plan(planned(), hpp.space_of(graph(), "pcie4x4")),
    "refusal": refusal,
    "cut between graphs": batch,
    "bytes": sent,
    "functions": lambda: [getattr(hpp, name) for name in hpp.__all__],
}


def names(saved: bytes) -> set[tuple[str, str]]:
    """The module and the name of all that a pickle of protocol 2 takes from hag_plugin."""
    found = [arg.split(" ") for op, arg, _ in pickletools.genops(saved) if op.name == "GLOBAL"]
    return {(module, name) for module, name in found if module.split(".")[0] == "hag_plugin"}


@pytest.mark.parametrize("what", MADE)
def test_pickles_name_public_places(what: str) -> None:
    named = names(pickle.dumps(MADE[what](), protocol=2))
    assert named
    assert {module for module, _ in named} <= PUBLIC


LOADING = """
import pickle, sys
from pathlib import Path
for path in sys.argv[1:]:
    print(type(pickle.loads(Path(path).read_bytes())).__name__)
"""


def test_a_fresh_process_loads_them(tmp_path: Path) -> None:
    made = [make() for make in MADE.values()]
    paths = [tmp_path / str(i) for i in range(len(made))]
    for path, value in zip(paths, made, strict=True):
        path.write_bytes(pickle.dumps(value))
    command = [sys.executable, "-c", LOADING, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [type(value).__name__ for value in made]


def test_what_comes_back_does_the_same() -> None:
    again = pickle.loads(pickle.dumps({name: make() for name, make in MADE.items()}))
    assert again["plan"] == planned()
    assert again["topology"] == machine()
    assert again["operations"].fingerprint == graph().fingerprint
    assert again["cut between graphs"](2).tolist() == batch()(2).tolist() == [0] * 5 + [1] * 4
    for name, parts in (("counts", 4), ("counts with a partition", 3), ("counts without HAGs", 3)):
        mine, theirs = MADE[name]().partition(parts), again[name].partition(parts)
        assert mine.halo.tolist() == theirs.halo.tolist()
        assert mine.hags == theirs.hags


def test_all_that_says_it_is_public_can_be_imported_there() -> None:
    said = []
    for module in pkgutil.walk_packages(hpp.__path__, "hag_plugin.parallel."):
        for value in vars(import_module(module.name)).values():
            if inspect.isclass(value) or inspect.isfunction(value):
                if value.__module__ != "hag_plugin.parallel":
                    continue
                said.append(value)
                assert getattr(hpp, value.__qualname__) is value
    assert {getattr(hpp, name) for name in hpp.__all__} <= set(said)
