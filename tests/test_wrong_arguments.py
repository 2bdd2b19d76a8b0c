"""Wrong values for every argument of what is public: an error that names the argument."""

from __future__ import annotations

import importlib
import inspect
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache, wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

import hag_plugin as hp
from hag_plugin import devices
from hag_plugin.hag.build import build_hags
from hag_plugin.ops.weights import factorise


@cache
def wrong_values() -> dict[str, Any]:
    """Values by name; most are wrong for most arguments."""
    floats = torch.ones(4, 3)
    return {
        "None": None,
        "a bool": True,
        "a negative int": -1,
        "zero": 0,
        "2**40": 2**40,
        "2**70": 2**70,
        "a float": 2.5,
        "NaN": float("nan"),
        "a text": "x",
        "bytes": b"x",
        "an empty list": [],
        "a list": ["x", None],
        "a dict": {"x": 1},
        "an object": object(),
        "a class": int,
        "an array": np.zeros((2, 3)),
        "a scalar": torch.tensor(3),
        "an empty tensor": torch.empty(0),
        "floats": floats,
        "ints": torch.tensor([[0, 1], [1, 0]]),
        "negative ints": torch.tensor([[0, -1], [1, 0]]),
        "huge ints": torch.tensor([[0, 2**40], [1, 0]]),
        "bools": torch.ones(4, 3, dtype=torch.bool),
        "complex": floats.to(torch.complex64),
        "float8": floats.to(torch.float8_e4m3fn),
        "sparse": floats.to_sparse(),
        "CSR": torch.eye(4).to_sparse_csr(),
        "quantized": torch.quantize_per_tensor(floats, 0.1, 0, torch.qint8),
        "nested": torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(1, 3)]),
        "meta": torch.empty(4, 3, device="meta"),
        "a device": torch.device("meta"),
        "a device that is not there": "cuda:77",
        "no device": "xpu",
        "a bogus device": "gpu",
        "a dtype": torch.int64,
    }


class Call:
    """A function, with arguments that are right."""

    def __init__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self.function = function
        bound = inspect.signature(function).bind(*args, **kwargs)
        self.parameters = bound.signature.parameters
        bound.apply_defaults()
        self.arguments = dict(bound.arguments)

    def names(self) -> list[str]:
        skipped = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        return [n for n, p in self.parameters.items() if p.kind not in skipped]

    def __call__(self, **changed: Any) -> Any:
        args, kwargs = [], {}
        for name, value in {**self.arguments, **changed}.items():
            kind = self.parameters[name].kind
            if kind is inspect.Parameter.VAR_KEYWORD:
                kwargs |= value
            elif kind is inspect.Parameter.VAR_POSITIONAL:
                args += value
            elif kind is inspect.Parameter.KEYWORD_ONLY:
                kwargs[name] = value
            else:
                args.append(value)
        return self.function(*args, **kwargs)


EDGES = torch.tensor([[0, 1, 2, 3, 0], [1, 0, 1, 2, 2]])


def a_hag() -> hp.HAG:
    return hp.build_hag(EDGES, num_nodes=4)


FOLDER = Path(tempfile.mkdtemp())


def saved(hag: hp.HAG) -> Path:
    hag.save(FOLDER / "saved.npz")
    return FOLDER / "saved.npz"


def core() -> dict[str, Call]:
    hag, x = a_hag(), torch.ones(4, 3)
    tree = hp.sequence.build_sequence(EDGES, num_nodes=4)
    lstm = torch.nn.LSTM(3, 3)
    return {
        "build_hag": Call(hp.build_hag, EDGES, num_nodes=4),
        "build_hag(size=)": Call(hp.build_hag, EDGES, size=(4, 4)),
        "build_hag(greedy)": Call(hp.build_hag, EDGES, num_nodes=4, method="greedy"),
        "build_hag(copies=)": Call(hp.build_hag, EDGES, num_nodes=4, copies=torch.arange(4)),
        "batch": Call(hp.batch, [hag, hag]),
        "aggregate": Call(hp.aggregate, x, hag),
        "HAG.from_csr": Call(hp.HAG.from_csr, hag.row_ptr, hag.col, 4),
        "HAG.program": Call(hag.program),
        "HAG.plain_program": Call(hag.plain_program),
        "HAG.prepare": Call(hag.prepare, [False]),
        "HAG.choice": Call(hag.choice),
        "HAG.candidates": Call(hag.candidates),
        "HAG.stats": Call(hag.stats),
        "HAG.check": Call(hag.check, EDGES),
        "HAG.matches": Call(hag.matches, EDGES),
        "HAG.degree": Call(hag.degree),
        "HAG.degree_scale": Call(hag.degree_scale, -0.5),
        "HAG.to": Call(hag.to, "cpu"),
        "HAG.flip": Call(hag.flip, 0),
        "HAG.size": Call(hag.size, 0),
        "HAG.cuda": Call(hag.cuda),
        "HAG.save": Call(hag.save, FOLDER / "graph.npz"),
        "HAG.load": Call(hp.HAG.load, saved(hag)),
        "build_hags": Call(build_hags, [EDGES], [4]),
        "build_sequence": Call(hp.sequence.build_sequence, EDGES, num_nodes=4),
        "factorise": Call(factorise, EDGES, torch.ones(5), 4, 4),
        "lstm_aggregate": Call(hp.sequence.lstm_aggregate, x, tree, lstm),
        "child_sum": Call(hp.sequence.child_sum, x, tree, torch.ones(3, 2, 3)),
    }


def own_layer() -> type:
    from torch_geometric.nn import MessagePassing

    return type("Own", (MessagePassing,), {"message": lambda self, x_j: x_j})


def of_pyg() -> dict[str, Call]:
    pytest.importorskip("torch_geometric")
    from torch_geometric.data import Data
    from torch_geometric.nn import GCN

    x, types = torch.ones(4, 3), torch.zeros(5, dtype=torch.long)
    data = Data(x=x, edge_index=EDGES, num_nodes=4)
    model = hp.accelerate(GCN(3, 3, 2)).eval()
    return {
        "accelerate": Call(hp.accelerate, GCN(3, 3, 2)),
        "explain": Call(hp.explain, model),
        "restore": Call(hp.restore, hp.accelerate(GCN(3, 3, 2))),
        "forget": Call(hp.forget, hp.accelerate(GCN(3, 3, 2))),
        "ToHAG": Call(hp.pyg.ToHAG),
        "ToHAG()": Call(hp.pyg.ToHAG().forward, data),
        "ToHAG().dataset": Call(hp.pyg.ToHAG().dataset, [data]),
        "inference": Call(hp.pyg.inference, model, x, EDGES),
        "relation_hags": Call(hp.pyg.relation_hags, EDGES, types, 1, (4, 4)),
        "hag_layer": Call(hp.hag_layer, own_layer()),
        "hag_layer(score=)": Call(hp.pyg.hag_layer, own_layer(), score=None),
        "layers": Call(hp.pyg.layers),
        "report": Call(hp.report, GCN(3, 3, 2), data, FOLDER / "page.html"),
        "to_dgl": Call(hp.pyg.to_dgl, data),
        "PrefixLSTMAggregation": Call(hp.pyg.PrefixLSTMAggregation, 3, 3),
    }


def of_dgl() -> dict[str, Call]:
    dgl = pytest.importorskip("dgl")
    plain = dgl.graph((EDGES[0], EDGES[1]), num_nodes=4)
    graph = hp.dgl.ToHAG()(plain)
    return {
        "ToHAG": Call(hp.dgl.ToHAG),
        "ToHAG()": Call(hp.dgl.ToHAG().__call__, plain),
        "ToHAG().dataset": Call(hp.dgl.ToHAG().dataset, [plain]),
        "batch": Call(hp.dgl.batch, [graph, graph]),
        "unbatch": Call(hp.dgl.unbatch, hp.dgl.batch([graph, graph])),
        "reverse": Call(hp.dgl.reverse, graph),
        "to_plain": Call(hp.dgl.to_plain, graph),
        "to_pyg": Call(hp.dgl.to_pyg, graph),
        "collate": Call(hp.dgl.collate, [graph, graph]),
        "hag_layer": Call(hp.dgl.hag_layer, type("Own", (torch.nn.Module,), {"forward": len})),
        "accelerate": Call(hp.dgl.accelerate, torch.nn.Linear(3, 3)),
        "explain": Call(hp.dgl.explain, torch.nn.Linear(3, 3)),
        "restore": Call(hp.dgl.restore, torch.nn.Linear(3, 3)),
        "forget": Call(hp.dgl.forget, torch.nn.Linear(3, 3)),
    }


def of_parallel() -> dict[str, Call]:
    pytest.importorskip("torch_geometric")
    from torch_geometric.data import Batch, Data
    from torch_geometric.nn import GCN

    p = hp.parallel
    model, data = GCN(3, 3, 2), Data(x=torch.ones(4, 3), edge_index=EDGES)
    plan, graph = p.plan(model, data, "a100x8", world_size=2), p.trace(model, data)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plan.save(FOLDER / "plan.json")
    one = p.plan(model, data, "a100x8", world_size=1)
    space, machine = p.space_of(graph, "a100x8", 2), p.preset("a100x8")
    network = p.trace(torch.nn.Linear(3, 3), torch.ones(4, 3))
    split = p.plan(network, topology="a100x8", world_size=2)
    store = FOLDER / "store"
    shutil.rmtree(store, ignore_errors=True)
    p.write_partitions(data, 1, store)

    @wraps(p.write_partitions)
    def rewritten(*args: Any, **kwargs: Any) -> Any:
        shutil.rmtree(FOLDER / "parts", ignore_errors=True)  # it takes new folders only
        shutil.rmtree(Path("x"), ignore_errors=True)
        return p.write_partitions(*args, **kwargs)

    return {
        "plan": Call(p.plan, model, data, "a100x8", world_size=2),
        "measure": Call(p.measure, EDGES, 4),
        "partition": Call(p.partition, EDGES, 4, 2),
        "preset": Call(p.preset, "a100x8"),
        "GraphStats.assumed": Call(p.GraphStats.assumed, 10, 20),
        "trace": Call(p.trace, model, data),
        "recost": Call(p.recost, plan, graph, "a100x8"),
        "Budget": Call(p.Budget, proposals=3),
        "refine": Call(p.refine, plan, space, p.Budget(proposals=3)),
        "simulate_plan": Call(p.simulate_plan, plan, space),
        "recost(network)": Call(p.recost, split, network, "a100x8"),
        "simulate_plan(network)": Call(p.simulate_plan, split, p.space_of(network, "a100x8", 2)),
        "space_of(network)": Call(p.space_of, network, "a100x8", 2),
        "by_graph": Call(p.by_graph, Batch.from_data_list([data, data])),
        "space_of": Call(p.space_of, graph, "a100x8", 2),
        "Topology.resized": Call(machine.resized, 4),
        "Topology.seconds": Call(machine.seconds, "all_reduce", 100.0),
        "parallelize": Call(p.parallelize, model, data, one),
        "probe_ranks": Call(p.probe_ranks),
        "save_checkpoint": Call(p.save_checkpoint, FOLDER / "state", model, optimizer),
        "load_checkpoint": Call(p.load_checkpoint, FOLDER / "state", model, optimizer),
        "write_partitions": Call(rewritten, data, 1, FOLDER / "parts"),
        "PartitionedData": Call(p.PartitionedData, store),
        "Plan.save": Call(plan.save, FOLDER / "plan.json"),
        "Plan.load": Call(p.Plan.load, FOLDER / "plan.json"),
        "Plan.check": Call(plan.check, graph),
        "Topology.from_dict": Call(p.Topology.from_dict, machine.as_dict()),
    }


TENSORS = {"floats", "sparse", "CSR", "bools", "complex", "float8", "quantized", "meta"}
TEXTS = {"a text", "a device that is not there", "no device", "a bogus device"}
NUMBERS = {"zero", "2**40", "2**70", "a float"}
# Which of the values are right for an argument, or stand for one that is.
FITS: dict[str, set[str]] = {
    "edge_index": {"ints"},
    "path": TEXTS,
    "verify": {"a bool"},
    "cls": {"None"},  # it then decorates
    "score": {"None"},
    "call": {"None", "a class"},
    "num_nodes": {"None"},
    "size": {"None"},
    "ptr": {"None"},
    "self_loops": {"an empty list"},
    "targets_first": {"a bool"},
    "allow_subtraction": {"a bool"},
    "capacity": {"None", "zero", "2**40"},
    "width": {"None", "zero"},
    "device": {"None", "a device", *(("zero",) if torch.cuda.is_available() else ())},
    "choose": {"None"},
    "copies": {"None", "floats", "bools"},
    "progress": {"None", "a bool"},
    "x": {"floats"},
    "source_scale": {"None"},
    "target_scale": {"None"},
    "out": {"None", "floats"},
    "idempotent": {"a bool"},
    "modes": {"an empty list"},
    "transpose": {"a bool"},
    "exponent": {"a negative int", "zero", "2**40", "2**70", "a float", "NaN"},
    "dims": {"zero"},
    "dim": {"None", "a negative int", "zero"},
    "padded": {"a bool"},
    "tolerance": {"None", "zero"},
    "per_edge": {"a bool"},
    "remove_edge_index": {"a bool"},
    "memory": {"None", "2**40", "2**70"},
    "num_relations": {"zero"},
    "sequence": {"None"},
    "dataset": {"an empty list"},
    "graphs": {"an empty list"},
    "hag": {"a bool"},
    "part": {"None", "a class"},
    "require": {"None", "a dict"},
    "edge_type": {"None"},
    "seed": {"zero", "2**40"},
    "sent": NUMBERS,
    "group": {"None", "an empty list"},
    "algorithm": {"None"},
    "limit": {"None", *NUMBERS},
    "randoms": {"zero"},
    "proposals": {"None", "zero", "2**40"},
    "seconds": {"None", *NUMBERS},
    "patience": {"a float"},
    "world_size": {"None"},
    "features": {"None"},
    "itemsize": {"None", "a bool"},
    "overlap": {"a bool"},
    "undirected": {"a bool"},
    "assignment": {"None"},
    "rank": {"None", "zero"},
    "sources": {"None"},
    "folder": TEXTS,
}
FOR_TORCH = {"non_blocking"}  # goes on to torch as it is
# Where one function takes more than others do under the same name.
FITS_OF = {
    ("HAG.check", "self_loops"): {"None"},
    ("ToHAG", "copies"): {"None", *TEXTS},
    ("collate", "items"): {"a list", "an array"},
    ("parallelize", "plan"): TEXTS,
    ("parallelize", "topology"): {"None", *TEXTS},
    ("report", "plan"): {"None", *TEXTS},
    ("report", "topology"): {"None"},
    ("parallelize", "device"): {"None", *(("zero",) if torch.cuda.is_available() else ())},
    ("GraphStats.assumed", "nodes"): {"zero"},
    ("GraphStats.assumed", "edges"): {"zero", "2**40"},
    ("GraphStats.assumed", "halo_ratio"): NUMBERS,
    ("GraphStats.assumed", "imbalance"): NUMBERS,
    ("GraphStats.assumed", "hag"): {"None", *NUMBERS},
    ("GraphStats.assumed", "hag_parts"): {"None", *NUMBERS},
    # What a model's layers can't take, they say.
    ("inference", "x"): {*TENSORS},
    ("factorise", "num_src"): {"zero"},  # an edge is named, whose source is out of range
    ("factorise", "num_dst"): {"zero"},
    ("HAG.matches", "edge_index"): {"ints", "negative ints", "huge ints"},
}


def outcome(name: str, call: Call, argument: str, value: Any) -> str:
    """Nothing where a call named what is wrong; otherwise what it did."""
    try:
        call(**{argument: value})
    except (TypeError, ValueError) as e:
        # Two that contradict each other: either may be named. Where there is one: the function.
        names = [*call.names(), *re.findall(r"\w+", name)]
        named = any(re.search(rf"\b{each}\b", str(e)) for each in names)
        dumped = "incompatible function arguments" in str(e)
        return "" if named and not dumped else f"{type(e).__name__} does not name it: {e}"
    except Exception as e:
        return f"{type(e).__name__}: {e}"
    return "accepted"


def wrongly(name: str, call: Call) -> list[str]:
    found = []
    for argument in call.names():
        if argument in FOR_TORCH:
            continue
        fits = FITS_OF.get((name, argument), FITS.get(argument, set()))
        for what, value in wrong_values().items():
            said = outcome(name, call, argument, value)
            if said and what not in fits:
                found.append(f"{name}({argument}={what}): {said[:200]}")
    return found


@pytest.fixture
def one_rank() -> Iterator[None]:
    """What takes the ranks of a group finds one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("calls", [core, of_pyg, of_dgl, of_parallel])
def test_what_is_wrong_is_named(
    calls: Callable[[], dict[str, Call]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a text may be a path
    found = [said for name, call in calls().items() for said in wrongly(name, call)]
    assert not found, "\n".join(found)


# Public names that take nothing from a user: modules, what functions give back, errors.
GIVEN_BACK: dict[str, set[str]] = {
    "hag_plugin": {"Choice", "Stats", "dgl", "parallel", "pyg", "sequence", "testing"},
    "hag_plugin.pyg": {"Explanation", "HagData", "constant"},
    "hag_plugin.dgl": {"HagBlock", "HagGraph", "graphbolt_stand_in"},
    "hag_plugin.parallel": {
        "InfeasibleError", "LayerPlan", "Network", "NetworkPlan", "Op", "OpGraph", "OperationPlan",
        "Parallel", "ParallelNetwork", "Partition", "Refined", "Share", "presets",
    },
    "hag_plugin.sequence": {"ORDERS", "Order", "SequenceStats", "SequentialHAG"},
}  # fmt: skip
OF: dict[str, tuple[Callable[[], dict[str, Call]], ...]] = {
    "hag_plugin": (core, of_pyg),  # what goes to a framework's adapter
    "hag_plugin.pyg": (of_pyg,),
    "hag_plugin.dgl": (of_dgl,),
    "hag_plugin.parallel": (of_parallel,),
    "hag_plugin.sequence": (core,),
}


@pytest.mark.usefixtures("one_rank")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", OF)
def test_everything_public_is_called_wrongly(name: str) -> None:
    calls = {key for make in OF[name] for key in make()}
    called = {re.match(r"\w+", key).group() for key in calls}  # type: ignore[union-attr]
    assert set(importlib.import_module(name).__all__) - GIVEN_BACK[name] - called == set()
    assert GIVEN_BACK[name] <= set(importlib.import_module(name).__all__)


@pytest.mark.parametrize("kind", sorted(devices.KINDS))
def test_devices_that_are_not_there(kind: str) -> None:
    if kind != "cpu":
        count = devices.module_of(devices.KINDS[kind]).device_count()
        with pytest.raises(ValueError, match=f"device is '{kind}:{count}', but torch finds"):
            a_hag().to(f"{kind}:{count}")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device is 'cuda', but torch finds no GPU"):
            a_hag().cuda()


MANY_NODES = """
import resource, sys, torch
import hag_plugin as hp
edges = torch.tensor([[0, 1, 2, 3, 0], [1, 0, 1, 2, 2]])
hp.build_hag(edges, num_nodes=10).program()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
hp.build_hag(edges, num_nodes=int(sys.argv[1])).program()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.parametrize("nodes", [10**6, 10**7])
def test_memory_is_in_proportion_to_nodes(nodes: int) -> None:
    words = [sys.executable, "-c", MANY_NODES, str(nodes)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 64 * nodes + 2**25


def test_more_nodes_than_ids_are_refused() -> None:
    with pytest.raises(ValueError, match="num_nodes"):
        hp.build_hag(EDGES, num_nodes=2**31)
