"""What the host does around the kernels, on tensors without memory in the place of a card's.

Everything but the kernels themselves runs as on a card; a value that the host would have to wait
for is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import hag_plugin as hp
from hag_plugin.hag.gpu.schedule import Schedule
from hag_plugin.hag.graph import Arrays, inverse_of
from hag_plugin.hag.passing import plain_hag, plain_hag_there
from hag_plugin.hag.program import Program
from hag_plugin.kernels.triton import launch
from hag_plugin.ops import weights
from hag_plugin.ops.attention import attend
from hag_plugin.testing import count_programs, limits

from ...attending import FORMS, NORMALISATIONS, how_of, tensors_of

pyg = pytest.importorskip("torch_geometric").nn
from hag_plugin.pyg.recipes.recipe import stock_class  # noqa: E402
from hag_plugin.pyg.recipes.relations import plain_relation_hags  # noqa: E402
from hag_plugin.pyg.recipes.scored import How, edges_there, joined_edges, scored  # noqa: E402
from hag_plugin.pyg.recipes.table import recipe_of  # noqa: E402
from hag_plugin.pyg.recipes.weighted import without_masks  # noqa: E402


class NoWaiting(TorchDispatchMode):
    """Refuses to take anything from the card to the host, or back."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {t.device for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        made = {t.device for t in tree_leaves(result) if isinstance(t, Tensor)}
        if given and len(given | made) > 1:
            raise AssertionError(f"{func} moves data between {given | made}")
        return result


class Launches:
    """Stands for a kernel: everything is checked that a launch takes, and nothing runs."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def run(*args: Any, **options: Any) -> None:
            assert all(type(g) is int and 0 < g < 2**31 for g in grid)
            devices = {a.device.type for a in args if isinstance(a, Tensor)}
            assert len(devices) == 1
            assert all(isinstance(a, Tensor | int) for a in args)
            self.log.append(self.name)

        return run


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The kernels that were launched. CPU tensors take the GPU's way, too."""
    log: list[str] = []
    for name in launch.KERNELS:
        monkeypatch.setitem(launch.KERNELS, name, Launches(name, log))
    with limits(kernels_anywhere=True, unseen_dispatch=True):
        yield log


def graph() -> hp.HAG:
    """Long rows on both sides, duplicates, loops, nodes without edges."""
    hub = torch.stack([torch.arange(300), torch.full((300,), 7)])
    random = torch.randint(0, 300, (2, 900))
    clique = torch.combinations(torch.arange(12)).T
    edges = torch.cat([hub, hub.flip(0), random, random[:, :5], clique, clique.flip(0)], 1)
    return hp.build_hag(edges, num_nodes=305)


def without_memory(hag: hp.HAG) -> None:
    """Takes the values from a HAG and from all that it has kept."""
    empty = partial(torch.empty_like, device="meta")

    def moved(value: Any) -> Any:
        if isinstance(value, Program):
            plain = value.__dict__.setdefault("_kept", {})
            plain |= {key: moved(each) for key, each in plain.items()}
        return (
            value.to("meta") if isinstance(value, Schedule) else tree_map_only(Tensor, empty, value)
        )

    for one in {hag, hag.transpose()}:
        one.arrays = Arrays(empty(one.row_ptr), empty(one.col), one.arrays.token)
        kept = [program.__dict__.get("_kept", {}) for program in one._programs.values()]
        for each in (one._kept, *kept):
            each |= {key: moved(value) for key, value in each.items()}


def extrema(x: Tensor, hag: hp.HAG, s: Tensor, t: Tensor, w: Tensor, mode: Any) -> list[Tensor]:
    scales = {"source_scale": s, "target_scale": t}
    return [
        hp.aggregate(x, hag, reduce, self_loops=mode, ties=ties, **scales)
        for reduce in ("max", "min")
        for ties in ("even", "first", "last")
    ]


def sums(x: Tensor, hag: hp.HAG, s: Tensor, t: Tensor, w: Tensor, mode: Any) -> list[Tensor]:
    scales = {"source_scale": s, "target_scale": t}
    return [
        run(x, hag, *weight, reduce, self_loops=mode, **scales)
        for run, weight in ((hp.aggregate, ()), (weights.weighted_aggregate, (w,)))
        for reduce in ("sum", "mean")
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_attention_never_waits(form: str, dtype: torch.dtype, launched: list[str]) -> None:
    hag = graph()
    sizes = hag.num_src, hag.num_dst, hag.num_edges

    def call(device: str) -> list[str]:
        before = len(launched)
        given = tensors_of(form, sizes, (2, 3, 4, 2), dtype, device)
        order = torch.arange(hag.num_edges, device=device)
        for normalise in NORMALISATIONS:
            leaves = {name: t.requires_grad_() for name, t in given.items()}
            y = attend(hag, order=order, normalise=normalise, **leaves, **how_of(form))
            found = torch.autograd.grad(y.sum(), list(leaves.values()))
            assert [g.shape for g in found] == [t.shape for t in leaves.values()]
            assert {g.device.type for g in found} == {device}
        return launched[before:]

    first = call("cpu")
    assert {"attend", "merge", "combine"} <= set(first)  # long rows are put together
    without_memory(hag)
    with NoWaiting():
        assert call("meta") == first


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mode", [False, "add", "fill"])
@pytest.mark.parametrize("run", [sums, extrema])
def test_the_host_never_waits(run: Any, mode: Any, dtype: torch.dtype, launched: list[str]) -> None:
    hag = graph()
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    sizes = ((2, hag.num_src, 5), (hag.num_src,), (hag.num_dst,), (hag.num_edges,))
    dtypes = (dtype, exact, exact, exact)

    def call(device: str) -> int:
        tensors = [
            torch.zeros(size, dtype=kind, device=device, requires_grad=True)
            for size, kind in zip(sizes, dtypes, strict=True)
        ]
        x, *others = tensors
        before = len(launched)
        total = sum(y.sum() for y in run(x, hag, *others, mode))
        used = tensors if run is sums else tensors[:3]
        found = torch.autograd.grad(total, used)
        assert [g.shape for g in found] == [t.shape for t in used]
        assert {g.device.type for g in found} == {device}
        return len(launched) - before

    first = call("cpu")  # what is made at the first call may wait
    assert first > 8
    without_memory(hag)
    with NoWaiting():
        assert call("meta") == first


@pytest.mark.parametrize("mode", [False, "add", "fill"])
def test_a_hag_that_was_moved_is_used_without_waiting(mode: Any, launched: list[str]) -> None:
    """At once: it was told what the host knows of it. Of extrema the gradients may wait, once."""
    hag = graph()
    for one in (hag, hag.transpose()):
        one.program(mode), one.program(mode, idempotent=True)
    moved = hag._moved_to_launch(partial(torch.empty_like, device="meta"))  # as `hag.cuda()`
    x = torch.zeros(305, 5, device="meta", requires_grad=True)
    with NoWaiting():
        for reduce in ("sum", "mean"):
            y = hp.aggregate(x, moved, reduce, self_loops=mode)
            torch.autograd.grad(y.sum(), x)
        hp.aggregate(x.detach(), moved, "max", self_loops=mode)
    assert len(launched) >= 5


@pytest.mark.parametrize("mode", [False, "add", "fill"])
@pytest.mark.parametrize("run", [sums, extrema])
def test_a_graph_is_made_and_used_without_waiting(run: Any, mode: Any, launched: list[str]) -> None:
    """One that is met once, with its reverse, its programs and all that they need."""
    edges = graph().edge_index
    counts = {}
    for device in ("cpu", "meta"):
        before = len(launched)
        given = edges if device == "cpu" else torch.empty_like(edges, device=device)
        with NoWaiting():
            hag = plain_hag(given, (305, 305))
            sizes = ((2, 305, 5), (305,), (305,), (hag.num_edges,))
            x, *others = (torch.zeros(s, device=device, requires_grad=True) for s in sizes)
            total = sum(y.sum() for y in run(x, hag, *others, mode))
            used = [x, *(others if run is sums else others[:2])]
            found = torch.autograd.grad(total, used)
        assert [g.shape for g in found] == [t.shape for t in used]
        assert {hag.device.type, *(g.device.type for g in found)} == {device}
        counts[device] = launched[before:]
    assert counts["cpu"] == counts["meta"]
    assert len(counts["cpu"]) > 8


def given_of(what: str, num_edges: int, device: str) -> list[Tensor]:
    """What a layer is given of each edge."""
    if what == "type":
        return [torch.zeros(num_edges, dtype=torch.long, device=device)]
    size = {"": None, "weight": (num_edges,), "values": (num_edges, 2)}[what]
    return [] if size is None else [torch.zeros(size, device=device, requires_grad=True)]


# What is made of edges that are met first, and what is given of each of them.
MET: dict[str, tuple[Callable[[], torch.nn.Module], str]] = {
    "gat": (lambda: pyg.GATConv(8, 4, heads=2), ""),
    "gat, values": (lambda: pyg.GATConv(8, 4, heads=2, edge_dim=2, dropout=0.5), "values"),
    "gatv2": (lambda: pyg.GATv2Conv(8, 4, heads=2, edge_dim=2, fill_value=0.0), "values"),
    "transformer": (lambda: pyg.TransformerConv(8, 4, heads=2, edge_dim=2), "values"),
    "agnn, no loops": (lambda: pyg.AGNNConv(add_self_loops=False), ""),
    "fa": (lambda: pyg.FAConv(8), ""),
    "gcn, weights": (lambda: pyg.GCNConv(8, 8), "weight"),
    "graph, weights": (lambda: pyg.GraphConv(8, 8), "weight"),
    "rgcn": (lambda: pyg.RGCNConv(8, 8, 3), "type"),
    "film": (lambda: pyg.FiLMConv(8, 8, 3, act=None), "type"),
}


@pytest.mark.parametrize("name", MET)
def test_what_is_met_first_is_made_without_waiting(
    name: str, launched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graph that a layer runs over, its forward and its gradients: once, of edges alone."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device_type: False)  # as below
    make, what = MET[name]
    edges, size = graph().edge_index, (305, 305)
    conv = hp.accelerate(make())
    recipe = recipe_of(stock_class(conv))
    counts = {}
    for device in ("cpu", "meta"):
        conv, before = conv.to(device), len(launched)
        given = edges if device == "cpu" else torch.empty_like(edges, device=device)
        of_edges = given_of(what, edges.shape[1], device)
        x = torch.zeros(305, 8, device=device, requires_grad=True)
        with NoWaiting():
            met: Any
            if what == "type":
                met = plain_relation_hags(given, of_edges.pop(), 3, size, both=True)
            elif what == "weight":
                hag = plain_hag_there(given, size)
                slots = inverse_of(hag.order)
                met = without_masks(conv, recipe.record, hag, slots, given, of_edges[0])
            else:
                how = How.of(conv, recipe.record, x.dtype)
                met = scored(edges_there(given, size, how), given)
            ends = (x, 2 * x) if name == "fa" else (x,)
            y = conv(*ends, met, *(of_edges if what == "values" else ()))
            leaves = [x, *of_edges, *conv.parameters()]
            found = torch.autograd.grad(y.sum(), leaves, allow_unused=True)
        assert found[0] is not None
        assert {g.device.type for g in found if g is not None} == {device}
        counts[device] = launched[before:]
    assert counts["cpu"] == counts["meta"]
    assert len(counts["cpu"]) >= 2


def test_edges_of_several_types_are_joined_without_waiting(launched: list[str]) -> None:
    """And the device asserts that they lead to nodes that there are."""
    sizes = {"author": 300, "paper": 305}
    keys = ("author", "writes", "paper"), ("paper", "cites", "paper")
    ids = torch.randint(0, 300, (2, 900))
    for device in ("cpu", "meta"):
        edges = dict.fromkeys(keys, ids.to(device))
        with NoWaiting():
            hag = joined_edges(edges, sizes).hag
            assert (hag.num_src, hag.num_dst, hag.is_unread) == (605, 605, True)
    with pytest.raises(RuntimeError, match="above the number of nodes"):
        joined_edges({keys[0]: ids + 20}, sizes)


LAYERS: dict[str, Callable[[], torch.nn.Module]] = {
    "gcn": lambda: pyg.GCNConv(8, 8),
    "sage": lambda: pyg.SAGEConv(8, 8),
    "sage, max": lambda: pyg.SAGEConv(8, 8, aggr="max"),
    "gin": lambda: pyg.GINConv(torch.nn.Linear(8, 8)),
    "gat": lambda: pyg.GATConv(8, 4, heads=2, add_self_loops=False),
}


@pytest.mark.parametrize("name", LAYERS)
def test_training_never_waits(
    name: str, launched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole step over a graph that is met once: layers, loss, gradients, optimizer."""
    # As of a card where no autocast is open: of tensors without memory torch does not say it.
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device_type: False)
    edges = graph().edge_index
    model = hp.accelerate(LAYERS[name]()).to("meta")
    optimizer = torch.optim.Adam(model.parameters(), capturable=False, foreach=False)
    x, labels = torch.zeros(305, 8, device="meta"), torch.zeros(305, dtype=torch.long).to("meta")
    for _ in range(2):
        hag = plain_hag(torch.empty_like(edges, device="meta"), (305, 305))
        before = len(launched)
        with NoWaiting():
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x, hag), labels).backward()
            optimizer.step()
        assert len(launched) - before >= 2


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: bool((x > 0).any()),
        lambda x: x.cpu(),
        lambda x: x.copy_(torch.zeros(3)),
        lambda x: x.tolist(),
        lambda x: x.nonzero(),
    ],
)
def test_waiting_is_noticed(waits: Callable[[Tensor], Any]) -> None:
    x = torch.zeros(3, device="meta")
    with NoWaiting(), pytest.raises((AssertionError, RuntimeError)):
        waits(x)


def test_what_ran_is_counted(launched: list[str]) -> None:
    one = torch.combinations(torch.arange(12)).T
    hag = hp.build_hag(torch.cat([one, one.flip(0)], 1), num_nodes=12)
    x = torch.zeros(2, hag.num_src, 5, requires_grad=True)
    with count_programs() as ran:
        hp.aggregate(x, hag, "mean").sum().backward()
        hp.aggregate(x, hag, "max")
        hp.aggregate(x, hag, "min", ties="last")
        weights.weighted_aggregate(x, hag, torch.zeros(hag.num_edges))
    assert [(run.operator, run.reduce, run.direction) for run in ran.programs] == [
        ("aggregate", "mean", "forward"),
        ("aggregate", "mean", "backward"),
        ("extremum", "max", "forward"),
        ("winners", "min", "forward"),
        ("weighted_sum", "sum", "forward"),
    ]
    assert (ran.hag, ran.plain) == (4, 1)
