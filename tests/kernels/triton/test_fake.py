"""What `torch.compile` makes of the operators on a card, from tensors that have no memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node

import hag_plugin as hp
from hag_plugin.hag.graph import Arrays
from hag_plugin.ops.weights import weighted_aggregate

OPS = torch.ops.hag_plugin


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_shapes_and_devices(dtype: torch.dtype) -> None:
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    with FakeTensorMode():
        on: dict[str, Any] = {"device": "cuda"}
        x, y = torch.empty(2, 7, 5, dtype=dtype, **on), torch.empty(2, 4, 5, dtype=dtype, **on)
        graph = torch.empty(5, dtype=torch.long, **on), torch.empty(9, dtype=torch.int, **on)
        s, t = torch.empty(7, dtype=exact, **on), torch.empty(4, dtype=exact, **on)
        weight, won = torch.empty(9, dtype=exact, **on), torch.empty(y.shape, dtype=int, **on)
        like_y, like_x = (y.shape, dtype), (x.shape, dtype)
        # what is called, and what it gives
        cases: tuple[tuple[Any, list[tuple[torch.Size, torch.dtype]]], ...] = (
            (OPS.aggregate(x, *graph, s, t, 4, "", False, "mean"), [like_y]),
            (OPS.aggregate(y, *graph, t, s, 7, "", True, "sum"), [like_x]),
            (OPS.extremum(x, *graph, "", True, 4), [like_y]),
            (OPS.masked_sum(None, x, y, *graph, "", False), [like_y]),
            (OPS.masked_sum(y, x, y, *graph, "", True), [like_x]),
            (OPS.winners(x, *graph, "", True, True, 4), [like_y, (y.shape, torch.int64)]),
            (OPS.add_to_winners(y, won, *graph, 7, ""), [like_x]),
            (OPS.weighted_sum(x, weight, *graph, s, t, 4, "", False, "sum"), [like_y]),
            (OPS.edge_dot(x, y, *graph, s, t, "", "sum"), [(weight.shape, exact)]),
            (OPS.edge_dot(x, y, *graph, s, t, "add", "sum"), [(torch.Size([13]), exact)]),
            *of_attention(graph, exact, on),
        )
    for result, expected in cases:
        found = result if isinstance(result, tuple) else (result,)
        assert [(r.shape, r.dtype) for r in found] == expected
        assert {r.device.type for r in found} == {"cuda"}


def of_attention(graph: tuple[Tensor, Tensor], dtype: torch.dtype, on: dict[str, Any]) -> list[Any]:
    """The same of the operators of attention: 9 edges from 7 to 4 nodes, with 2 heads."""
    on |= {"dtype": dtype}
    value, y, kept = (torch.empty(n, 2, 3, **on) for n in (7, 4, 4))
    kept = torch.empty(4, 2, 2, **on)
    key, query, weight = (torch.empty(n, 2, **on) for n in (7, 4, 9))
    tensors = (value, key, query, *[None] * 5, weight, None)
    form = 4, "sum", 0.2, "softmax", ""
    needs = value, key, query, weight
    bits = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 8
    numbers = torch.Size([sum(t.numel() for t in needs)])
    back = OPS.attend_backward(y, y, kept, *tensors, *graph, bits, *form)
    return [
        (OPS.head_sum(value, weight, None, *graph, 4, "", False), [(y.shape, dtype)]),
        (OPS.head_sum(y, weight, None, *graph, 7, "", True), [(value.shape, dtype)]),
        (OPS.head_dot(value, y, None, *graph, ""), [(weight.shape, dtype)]),
        (OPS.attend(*tensors, *graph, *form), [(y.shape, dtype), (kept.shape, dtype)]),
        (back, [(numbers, dtype)]),
    ]


def test_every_operator_has_kernels_for_both_devices() -> None:
    names = ("aggregate", "extremum", "masked_sum", "winners", "add_to_winners", "weighted_sum")
    attention = ("head_sum", "head_dot", "attend", "attend_backward")
    for name in (*names, "edge_dot", *attention):
        for key in ("CPU", "CUDA"):
            assert torch._C._dispatch_has_kernel_for_dispatch_key(f"hag_plugin::{name}", key), name
    assert not torch._C._dispatch_has_kernel_for_dispatch_key("hag_plugin::aggregate", "XPU")


def model(x: Tensor, weight: Tensor, scale: Tensor, hag: hp.HAG) -> Tensor:
    y = hp.aggregate(x, hag, "mean", self_loops="fill", source_scale=scale)
    for ties in ("even", "first", "last"):
        y = hp.aggregate(y.relu(), hag, "max", ties=ties)
    return weighted_aggregate(y, hag, weight, "mean", self_loops="add", target_scale=scale)


def inputs_on(device: str) -> tuple[Tensor, Tensor, Tensor, hp.HAG]:
    def csr(device: str) -> tuple[Tensor, Tensor]:
        sizes = ((10, torch.long), (30, torch.int))
        row_ptr, col = (torch.empty(n, dtype=dtype, device=device) for n, dtype in sizes)
        return row_ptr, col

    hag = hp.HAG(*csr("meta"), 9)  # one with memory would be checked
    hag.arrays = Arrays(*csr(device), torch.empty((), dtype=torch.long))
    sizes = ((9, 5), (30,), (9,))
    x, weight, scale = (torch.empty(size, device=device) for size in sizes)
    return x, weight, scale, hag


def operators_in(graph: GraphModule) -> set[str]:
    """The names of our operators; each must get the graph's arrays as they came, never a copy."""
    names = set()
    for node in graph.graph.nodes:
        name = str(node.target)
        if name.startswith("hag_plugin."):
            names.add(name.split(".")[1])
            given = [a for a in node.args if isinstance(a, Node)]
            integers = [a for a in given if not value(a).is_floating_point()]
            arrays = [a for a in integers if value(a).dim() == 1]
            assert [a.op for a in arrays] == ["placeholder"] * 2, f"{name} got {node.args}"
    return names


def value(node: Node) -> Any:
    return node.meta.get("val", node.meta.get("example_value"))


def test_compiles_whole_on_a_card_that_is_not_there() -> None:
    torch._dynamo.reset()
    graphs: list[GraphModule] = []

    def backend(graph: GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    with FakeTensorMode(), torch.no_grad():
        inputs = inputs_on("cuda")
        y = torch.compile(model, backend=backend, fullgraph=True)(*inputs)
        assert y.device.type == "cuda"
    assert len(graphs) == 1
    assert operators_in(graphs[0]) == {"aggregate", "extremum", "weighted_sum"}
    values = [v for v in map(value, graphs[0].graph.nodes) if isinstance(v, Tensor)]
    # but for the token, which is read where the host is
    assert {v.device.type for v in values if v.dim()} == {"cuda"}
    assert {v.device.type for v in values if not v.dim()} == {"cpu"}


def test_gradients_compile_whole_without_memory() -> None:
    """On the meta device: autograd refuses CUDA tensors, fake or not, where there is no card."""
    torch._dynamo.reset()
    graphs: list[GraphModule] = []

    def compiler(graph: GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=compiler, bw_compiler=compiler)
    *leaves, hag = inputs_on("meta")
    inputs = [t.requires_grad_() for t in leaves]
    torch.compile(model, backend=backend, fullgraph=True)(*inputs, hag).sum().backward()
    assert [t.grad is not None and t.grad.shape == t.shape for t in inputs] == [True] * 3
    forward, backward = map(operators_in, graphs)
    assert forward == {"aggregate", "extremum", "winners", "weighted_sum"}
    # the derivatives by the scales take a forward sum each
    assert backward == {"aggregate", "masked_sum", "add_to_winners", "weighted_sum", "edge_dot"}
