"""What only a card can show: real launches, CUDA graphs, compiled models, scratch full of NaN."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import hag_plugin as hp
from hag_plugin.data import datasets
from hag_plugin.hag.passing import plain_hag
from hag_plugin.ops.attention import attend
from hag_plugin.testing import count_programs, limits

from ...attending import how_of, tensors_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")


def cliques(count: int = 40, size: int = 12) -> torch.Tensor:
    one = torch.combinations(torch.arange(size)).T
    both = torch.cat([one, one.flip(0)], 1)
    return torch.cat([both + size * i for i in range(count)], 1)


def test_search_for_the_card() -> None:
    hag = hp.build_hag(cliques().cuda(), num_nodes=480)
    assert hag.device.type == "cuda"
    assert hag.options.device == "cuda"
    assert hag.stats().predicted_seconds > 0
    assert hp.HAG.cpu(hag).device.type == "cpu"
    gpu = hag.stats().gpu
    assert gpu is not None
    assert gpu.multiprocessors == torch.cuda.get_device_properties(0).multi_processor_count


@pytest.mark.parametrize("mode", [False, "add"])
def test_candidates_are_timed_on_the_card(mode: hp.hag.SelfLoops) -> None:
    edges = cliques(4000).cuda()
    hag = hp.build_hag(edges, num_nodes=48_000, self_loops=mode, choose="measure")
    choice = hag.choice(64, self_loops=mode)
    assert choice.by == "measure"
    assert choice.seconds.keys() == {"plain", "hag"}
    x = torch.randn(48_000, 64, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")  # whichever runs, its schedule is there
    try:
        hp.aggregate(x, hag, self_loops=mode)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    by_model = hp.build_hag(edges, num_nodes=48_000, self_loops=mode, choose="model")
    assert by_model.choice(64, self_loops=mode).by != "measure"


def test_mixed_devices_are_refused() -> None:
    hag = hp.build_hag(cliques(), num_nodes=480)
    with pytest.raises(ValueError, match=r"x is on cuda:0 and the HAG on cpu"):
        hp.aggregate(torch.ones(480, 4).cuda(), hag)
    with pytest.raises(ValueError, match=r"source_scale is on cpu; expected cuda:0"):
        hp.aggregate(torch.ones(480, 4).cuda(), hag.cuda(), source_scale=torch.ones(480))


@pytest.mark.parametrize(
    ("reduce", "ties"), [("sum", "even"), ("mean", "even"), ("max", "even"), ("min", "first")]
)
def test_no_call_waits_for_the_card(reduce: str, ties: str) -> None:
    hag = hp.build_hag(cliques(), num_nodes=480).cuda()
    x = torch.randn(480, 16, device="cuda", requires_grad=True)
    for _ in range(2):
        hp.aggregate(x, hag, reduce, ties=ties).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        hp.aggregate(x, hag, reduce, ties=ties).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_captured_in_a_graph() -> None:
    hag = hp.build_hag(cliques(), num_nodes=480, self_loops="add").cuda()
    x, out = torch.zeros(2, 480, 32, device="cuda")
    hp.aggregate(x, hag, self_loops="add", out=out)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        hp.aggregate(x, hag, self_loops="add", out=out)
    x.normal_()
    graph.replay()
    torch.testing.assert_close(out, hp.aggregate(x, hag, self_loops="add"), rtol=0, atol=0)


def test_compiled() -> None:
    hag = hp.build_hag(cliques(), num_nodes=480).cuda()
    x = torch.randn(480, 16, device="cuda", requires_grad=True)
    compiled = torch.compile(lambda x: hp.aggregate(x.relu(), hag, "mean").square())
    found = torch.autograd.grad(compiled(x).sum(), x)[0]
    expected = torch.autograd.grad(hp.aggregate(x.relu(), hag, "mean").square().sum(), x)[0]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["BZR_MD", "IMDB-MULTI", "ca-HepPh", "REDDIT-BINARY"])
def test_stress(shared_data: Path, name: str) -> None:
    """Fresh scratch is full of NaN (`poisoned_memory`); a row read too early would show it."""
    graph = datasets.load(name, shared_data / "npz")
    hag = hp.build_hag(graph.edge_index, num_nodes=graph.num_nodes)
    on_card = hag.cuda()
    for width, mode in ((16, False), (33, "add"), (256, "add")):
        for dtype in (torch.float32, torch.float16):
            x = torch.randn(graph.num_nodes, width).to(dtype)
            first = hp.aggregate(x.cuda(), on_card, self_loops=mode)
            expected = hp.aggregate(x, hag, self_loops=mode)
            bound = hp.aggregate(x.abs().float(), hag, self_loops=mode)
            step = 1e-5 if dtype == torch.float32 else 2e-3
            assert ((first.cpu().float() - expected.float()).abs() <= step * bound + 1e-6).all()
            for _ in range(50):  # the same to the last bit, whatever runs beside it
                assert torch.equal(hp.aggregate(x.cuda(), on_card, self_loops=mode), first)
            largest = hp.aggregate(x.cuda(), on_card, "max", self_loops=mode).cpu()
            assert torch.equal(largest, hp.aggregate(x, hag, "max", self_loops=mode))


ATTENTION = ("sum with edges", "vector", "dot, masked", "dot with edges")


@pytest.mark.parametrize("form", ATTENTION)
def test_attention_waits_for_nothing_and_is_captured(form: str) -> None:
    hag = hp.build_hag(cliques(), num_nodes=480).cuda()
    given = tensors_of(form, (480, 480, hag.num_edges), (4, 16, 16, 3), torch.float32, "cuda")
    leaves = [t.requires_grad_() for t in given.values()]

    def step() -> tuple[torch.Tensor, ...]:
        y = attend(hag, **given, **how_of(form))
        return y, *torch.autograd.grad(y, leaves, torch.ones_like(y))

    for _ in range(3):
        step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        expected = step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    graph.replay()
    torch.cuda.synchronize()
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("form", ATTENTION)
@pytest.mark.parametrize("name", ["IMDB-MULTI", "ca-HepPh"])
def test_attention_stress(shared_data: Path, name: str, form: str) -> None:
    """As the CPU has it, and the same to the last bit, whatever runs beside it."""
    graph = datasets.load(name, shared_data / "npz")
    hag = hp.build_hag(graph.edge_index, num_nodes=graph.num_nodes, method="none")
    on_card = hag.cuda()
    sizes = graph.num_nodes, graph.num_nodes, hag.num_edges
    for widths in ((1, 64, 64, 3), (8, 8, 8, 3), (3, 33, 5, 2)):
        given = tensors_of(form, sizes, widths, torch.float32)

        def run(hag: hp.HAG, given: dict[str, torch.Tensor] = given) -> list[torch.Tensor]:
            leaves = {k: t.to(hag.device).requires_grad_() for k, t in given.items()}
            y = attend(hag, **leaves, **how_of(form))
            return [y.detach(), *torch.autograd.grad(y.sum(), list(leaves.values()))]

        first, expected = run(on_card), run(hag)
        for mine, theirs in zip(first, expected, strict=True):
            torch.testing.assert_close(
                mine.cpu(), theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max())
            )
        for _ in range(10):
            for again, mine in zip(run(on_card), first, strict=True):
                assert torch.equal(again, mine)


# Training ---------------------------------------------------------------------------------------

CLASSES = 4
LAYERS = ("gcn", "sage", "gin", "gat")


def layer(name: str, width_in: int, width_out: int) -> torch.nn.Module:
    nn = pytest.importorskip("torch_geometric").nn
    if name == "gin":
        return nn.GINConv(torch.nn.Linear(width_in, width_out))
    if name == "gat":
        return nn.GATConv(width_in, width_out // 2, heads=2)
    return {"gcn": nn.GCNConv, "sage": nn.SAGEConv}[name](width_in, width_out)


class Net(torch.nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = layer(name, 16, 8), layer(name, 8, CLASSES)

    def forward(self, x: torch.Tensor, graph: object) -> torch.Tensor:
        y: torch.Tensor = self.second(self.first(x, graph).relu(), graph)
        return y


class Training:
    """A model over cliques, accelerated or not, and its steps."""

    def __init__(self, name: str, accelerated: bool = True) -> None:
        self.net = Net(name).cuda()
        edges = cliques().cuda()
        self.graph: object = edges
        if accelerated:
            hp.accelerate(self.net)
            self.graph = hp.build_hag(edges, num_nodes=480)
        torch.manual_seed(1)
        self.x, self.labels = torch.randn(480, 16).cuda(), torch.randint(CLASSES, (480,)).cuda()
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=1e-2, capturable=True)
        self.run: Callable[..., torch.Tensor] = self.net
        self.dtype: torch.dtype | None = None

    def step(self) -> torch.Tensor:
        self.optimizer.zero_grad()
        with torch.autocast("cuda", self.dtype, enabled=self.dtype is not None):
            scores = self.run(self.x, self.graph)
            loss = torch.nn.functional.cross_entropy(scores, self.labels)
        loss.backward()
        self.optimizer.step()
        return loss

    def losses(self, steps: int = 5) -> torch.Tensor:
        return torch.stack([self.step().detach().clone() for _ in range(steps)])


@pytest.mark.parametrize("name", LAYERS)
def test_training_is_that_of_stock(name: str) -> None:
    torch.testing.assert_close(
        Training(name).losses(), Training(name, False).losses(), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", LAYERS)
def test_a_training_step_waits_for_nothing(name: str) -> None:
    training = Training(name)
    training.losses(2)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        training.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", LAYERS)
def test_a_training_step_is_captured(name: str) -> None:
    expected = Training(name).losses(8)
    training = Training(name)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        first = training.losses(3)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = training.step()
    found = []
    for _ in range(5):
        graph.replay()
        found.append(loss.detach().clone())
    torch.testing.assert_close(torch.cat([first, torch.stack(found)]), expected)


@pytest.mark.parametrize("name", LAYERS)
def test_a_compiled_model_trains_in_cuda_graphs(name: str) -> None:
    torch._dynamo.reset()
    training = Training(name)
    training.run = torch.compile(training.net, mode="reduce-overhead")
    torch.testing.assert_close(training.losses(), Training(name).losses(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_training_under_autocast(name: str, dtype: torch.dtype) -> None:
    mine, theirs = Training(name), Training(name, False)
    mine.dtype = theirs.dtype = dtype
    torch.testing.assert_close(mine.losses(), theirs.losses(), rtol=0.05, atol=0.02)


def test_a_rank_trains_over_nccl() -> None:
    """One rank, whose losses are those of a model without ranks."""
    distributed = torch.distributed
    if not distributed.is_nccl_available():
        pytest.skip("torch was built without NCCL")
    expected = Training("gcn").losses()
    store = distributed.HashStore()
    distributed.init_process_group("nccl", store=store, rank=0, world_size=1)
    try:
        training = Training("gcn")
        training.run = torch.nn.parallel.DistributedDataParallel(training.net)
        torch.testing.assert_close(training.losses(), expected)
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize("name", LAYERS)
def test_a_captured_step_follows_what_is_written_to_it(name: str) -> None:
    """Features and labels that are copied into the captured ones are those that it trains on."""
    training, other = Training(name), Training(name)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        training.losses(3)
    torch.cuda.current_stream().wait_stream(side)
    other.losses(3)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = training.step()
    for _ in range(2):
        x, labels = torch.randn(480, 16), torch.randint(CLASSES, (480,))
        for one in (training, other):
            one.x.copy_(x.pin_memory(), non_blocking=True)
            one.labels.copy_(labels.pin_memory(), non_blocking=True)
        graph.replay()
        torch.testing.assert_close(loss, other.step(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", [False, "add", "fill"])
def test_a_pinned_hag_is_moved_without_waiting(mode: hp.hag.SelfLoops) -> None:
    """As batches from the workers of a loader, and the first call over it waits for nothing."""
    on_cpu = hp.build_hag(cliques()[:, 3:], num_nodes=480)
    for each in (on_cpu, on_cpu.transpose()):
        each.program(mode)
    pinned = on_cpu.pin_memory()
    assert pinned.arrays.col.is_pinned()
    x = torch.randn(480, 16, device="cuda", requires_grad=True)
    hp.aggregate(x, on_cpu.cuda(), self_loops=mode).sum().backward()  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        moved = pinned.to("cuda", non_blocking=True)
        y = hp.aggregate(x, moved, self_loops=mode)
        y.sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = hp.aggregate(x.detach().cpu(), on_cpu, self_loops=mode)
    torch.testing.assert_close(y.detach().cpu(), expected)


def test_stats_say_what_is_held() -> None:
    """Within the 512 bytes of which torch gives each tensor a multiple."""
    on_cpu = hp.build_hag(cliques(4000)[:, 7:], num_nodes=48_000)
    on_cpu.program(), on_cpu.transpose().program()
    before = torch.cuda.memory_allocated()
    hag = on_cpu.cuda()
    held = torch.cuda.memory_allocated() - before
    said = hag.stats().gpu_bytes
    assert said is not None
    assert said.total <= held <= said.total + 512 * 30


@pytest.mark.parametrize("name", LAYERS)
def test_graphs_that_are_met_once_are_made_on_the_card(name: str) -> None:
    """Each step has edges of its own, and nothing waits but stock's own code."""
    mine, theirs = Training(name), Training(name, False)
    for number in range(4):
        edges = cliques().cuda()[:, number:].contiguous()
        mine.graph, theirs.graph = edges, edges.clone()
        with limits(few_messages=0, passing_gain=0.0), count_programs() as ran:
            torch.testing.assert_close(mine.step(), theirs.step(), rtol=1e-4, atol=1e-5)
        assert ran.plain > 1
        assert type(ran.programs[0].program).__name__ in ("DeviceProgram", "DeviceHAG")
    edges = cliques().cuda()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        hag = plain_hag(edges, (480, 480))
        x = torch.randn(480, 16, device="cuda", requires_grad=True)
        for reduce in ("sum", "mean", "max"):
            hp.aggregate(x, hag, reduce, self_loops="fill").sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


MET: dict[str, Callable[[Any], torch.nn.Module]] = {
    "gat": lambda nn: nn.GATConv(16, 8, heads=2),
    "gatv2 of values": lambda nn: nn.GATv2Conv(16, 8, edge_dim=2),
    "transformer": lambda nn: nn.TransformerConv(16, 8, heads=2),
    "gcn with weights": lambda nn: nn.GCNConv(16, 8),
    "rgcn with types": lambda nn: nn.RGCNConv(16, 8, 3),
    "rgat with types": lambda nn: nn.RGATConv(16, 8, 3, heads=2),
}


@pytest.mark.parametrize("name", MET)
def test_a_layer_meets_a_graph_without_waiting(name: str) -> None:
    """Its call and its gradients, of edges that the card alone knows; they are stock's."""
    make = MET[name]
    stock = make(pytest.importorskip("torch_geometric").nn).cuda()
    ours = hp.accelerate(copy.deepcopy(stock))
    edges = cliques().cuda()
    x = torch.randn(480, 16, device="cuda", requires_grad=True)
    of_edges = {
        "values": [torch.randn(edges.shape[1], 2, device="cuda")],
        "weights": [torch.rand(edges.shape[1], device="cuda", requires_grad=True)],
        "types": [torch.randint(0, 3, edges.shape[1:], device="cuda")],
    }.get(name.split()[-1], [])

    def call(layer: torch.nn.Module, dropped: int) -> list[torch.Tensor]:
        given = [t[dropped:] for t in of_edges]
        y = layer(x, edges[:, dropped:].clone(), *given)
        return [y, torch.autograd.grad(y.square().sum(), x)[0]]

    with limits(few_messages=0, passing_gain=0.0):
        call(ours, 0)  # compiles
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            found = call(ours, 3)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for mine, theirs in zip(found, call(stock, 3), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
