"""What only a card can show: real launches, CUDA graphs, compiled models, scratch full of NaN."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import hag_plugin as hp
from hag_plugin.data import datasets
from hag_plugin.ops.attention import attend

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
