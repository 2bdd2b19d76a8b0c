"""What the host does around the kernels, on tensors without memory in the place of a card's.

Everything but the kernels themselves runs as on a card; a value that the host would have to wait
for is not there.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import hag_plugin as hp
from hag_plugin.hag.gpu.schedule import Schedule
from hag_plugin.hag.graph import Arrays
from hag_plugin.hag.passing import plain_hag
from hag_plugin.hag.program import Program
from hag_plugin.kernels.triton import launch
from hag_plugin.ops import weights
from hag_plugin.ops.attention import attend
from hag_plugin.testing import count_programs, limits

from ...attending import FORMS, NORMALISATIONS, how_of, tensors_of

pyg = pytest.importorskip("torch_geometric").nn
from torch_geometric.nn.models.linkx import SparseLinear  # noqa: E402

from hag_plugin.pyg import explain  # noqa: E402
from hag_plugin.pyg.model.choice import FILLS  # noqa: E402
from hag_plugin.pyg.recipes.scored import joined_edges  # noqa: E402
from hag_plugin.pyg.recipes.table import RECIPES  # noqa: E402

from ...pyg.recipes import test_attention, test_table  # noqa: E402


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


# Layers that meet a graph first -----------------------------------------------------------------

SIZE, FEATURES = 305, 6
MORE: dict[str, Callable[[], Any]] = {
    "gcn": lambda: pyg.GCNConv(FEATURES, 4),
    "gcn, weights": lambda: pyg.GCNConv(FEATURES, 4, improved=True),
    "sage": lambda: pyg.SAGEConv(FEATURES, 4, aggr=["mean", "max"]),
    "gin": lambda: pyg.GINConv(torch.nn.Linear(FEATURES, 4)),
    "graph, weights": lambda: pyg.GraphConv(FEATURES, 4),
    "labels": lambda: pyg.LabelPropagation(2, 0.7),
    "rows": lambda: SparseLinear(SIZE, 4),
    "han": lambda: pyg.HANConv(FEATURES, 4, METADATA, heads=2),
    "hgt": lambda: pyg.HGTConv(FEATURES, 4, METADATA, heads=2),
    "supergat, evaluated": lambda: pyg.SuperGATConv(FEATURES, 4, heads=2).eval(),
    "supergat, no loops": lambda: pyg.SuperGATConv(FEATURES, 4, add_self_loops=False).eval(),
}
METADATA = ["paper"], [("paper", "cites", "paper"), ("paper", "follows", "paper")]
MET = test_table.CONFIGURATIONS | test_attention.LAYERS | MORE


def arguments(name: str, conv: Any, edges: Tensor) -> tuple[Any, ...]:
    """What a layer is given."""
    x = torch.randn(SIZE, FEATURES)
    if name in ("han", "hgt"):
        return {"paper": x}, dict.fromkeys(METADATA[1], edges)
    if name == "rows":
        return edges, None
    if name in MORE:
        return x, edges, *([torch.rand(edges.shape[1])] if "weights" in name else ())
    if name in test_attention.LAYERS:
        return (*test_attention.arguments(name, SIZE, edges, torch.float32),)
    of_edges = SimpleNamespace(edge_index=edges, num_src=SIZE)
    return (*test_table.variants(conv, x, of_edges)[0],)


def on(device: str, given: Any) -> tuple[Any, list[Tensor]]:
    """The same on a device; and those tensors of it that have gradients."""

    def moved(t: Tensor) -> Tensor:
        return t.detach().to(device).requires_grad_(t.is_floating_point())

    given = tree_map_only(Tensor, moved, given)
    return given, [t for t in tree_leaves(given) if isinstance(t, Tensor) and t.requires_grad]


def step(conv: Any, device: str, given: Any) -> None:
    """A call and its gradients, in which nothing may move."""
    given, leaves = on(device, given)
    leaves = [*leaves, *conv.to(device).parameters()]
    with NoWaiting():
        y = tree_leaves(conv(*given))
        total = sum(t.sum() for t in y)
        if leaves and total.requires_grad:  # labels are spread without gradients
            found = torch.autograd.grad(total, leaves, allow_unused=True)
            assert {g.device.type for g in found if g is not None} == {device}


def waits(conv: Any, given: Any) -> bool:
    """Whether a step of a layer waits for the card, or ours may, to see how far values reach."""
    if any(isinstance(module, pyg.aggr.SoftmaxAggregation) for module in conv.modules()):
        return True
    try:
        step(conv, "meta", given)
    except (AssertionError, NotImplementedError, RuntimeError):
        return True
    return False


def test_every_recipe_is_met_first() -> None:
    assert {type(make()) for make in MET.values()} == set(RECIPES)


@pytest.mark.parametrize("name", MET)
def test_a_layer_that_meets_a_graph_first(
    name: str, launched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs over what is made of it there, or says what rules the layer out; and the whole call
    waits for the card only where stock's code does, too."""
    # As of a card where no autocast is open: of tensors without memory torch does not say it.
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device_type: False)
    address = Tensor.data_ptr
    monkeypatch.setattr(Tensor, "data_ptr", lambda t: id(t) if t.is_meta else address(t))
    stock = MET[name]()
    given = arguments(name, stock, graph().edge_index)
    devices = ["cpu"] if waits(copy.deepcopy(stock), given) else ["cpu", "meta"]
    found = []
    for device in devices:
        before, ours = len(launched), hp.accelerate(copy.deepcopy(stock))
        (row,) = explain(ours)
        with limits(few_messages=0, passing_gain=0.0):
            step(ours, device, given)
        calls = explain(ours)[0].calls
        if "stock" in calls.counts:
            assert calls.reasons["stock"] in (row.reason, FILLS) or not row.accelerated, calls
        else:
            assert calls.counts == {"plain": 1}
            assert len(launched) > before or name == "cheb-one"  # which looks at no edge
        found.append(launched[before:])
    assert found[0] == found[-1]


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
