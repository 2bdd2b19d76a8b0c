"""Every operator under every transform of torch equals gathering and scattering in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

import hag_plugin as hp
from hag_plugin.ops.weights import edge_slots, factorise, weighted_aggregate
from hag_plugin.sequence import build_sequence, child_sum, lstm_aggregate

from ..cases import random_graph
from ..derivatives import EVERY, FIRST, WHOLE, Function, batched_gradients, hessian, jvp

NODES, WIDTH = 6, 2
SCATTER = {"sum": "sum", "mean": "mean", "max": "amax", "min": "amin"}
pytestmark = pytest.mark.filterwarnings(
    "ignore:There is a performance drop",
    "ignore:.*vmap.*:UserWarning",
    "ignore:Attempted to insert a get_attr Node",
)


def edges_in_order() -> Tensor:
    """By target, then by source, with duplicates, loops and nodes without edges."""
    edges = random_graph(NODES, NODES, 14, seed=3)
    return edges[:, (edges[1] * NODES + edges[0]).argsort()]


def with_loops(edges: Tensor, mode: Any) -> Tensor:
    loops = torch.arange(NODES).expand(2, -1)
    if mode is False:
        return edges
    kept = edges if mode == "add" else edges[:, edges[0] != edges[1]]
    return torch.cat([kept, loops], dim=1)


def scattered(messages: Tensor, target: Tensor, reduce: str) -> Tensor:
    index = target.unsqueeze(-1).expand_as(messages)
    zeros = torch.zeros_like(messages[..., :1, :]).expand(*messages.shape[:-2], NODES, WIDTH)
    return zeros.scatter_reduce(-2, index, messages, SCATTER[reduce], include_self=False)


def reduced(
    edges: Tensor, reduce: str, mode: Any, s: Tensor | None = None, t: Tensor | None = None
) -> Function:
    source, target = with_loops(edges, mode)

    def run(x: Tensor) -> Tensor:
        rows = x if s is None else x * s.unsqueeze(-1)
        y = scattered(rows[..., source, :], target, reduce)
        return y if t is None else y * t.unsqueeze(-1)

    return run


def point() -> tuple[Tensor, Tensor]:
    x, v = torch.randn(2, NODES, WIDTH, dtype=torch.float64)
    return x, v


def numbers(*size: int) -> Tensor:
    return torch.rand(size, dtype=torch.float64) + 0.5


# The sums and extrema ---------------------------------------------------------------------------


@pytest.mark.parametrize("transform", EVERY)
@pytest.mark.parametrize("reduce", SCATTER)
def test_aggregate(reduce: Any, transform: Any) -> None:
    """By the features; each on a HAG that the transform is the first to use."""
    edges, (x, v) = edges_in_order(), point()
    s, t = numbers(NODES), numbers(NODES)
    for mode in (False, "fill"):
        hag = hp.build_hag(edges, num_nodes=NODES)

        def f(x: Tensor, hag: hp.HAG = hag, mode: Any = mode) -> Tensor:
            how = {"self_loops": mode, "source_scale": s, "target_scale": t}
            return hp.aggregate(x, hag, reduce, **how)

        g = reduced(edges, reduce, mode, s, t)
        torch.testing.assert_close(transform(f, x, v), transform(g, x, v))
        leaf = x.clone().requires_grad_()
        f(leaf).sum().backward()  # nothing of the transform was kept
        torch.testing.assert_close(f(x), g(x))


@pytest.mark.parametrize("transform", FIRST)
@pytest.mark.parametrize("reduce", ["max", "min"])
def test_ties(reduce: Any, transform: Any) -> None:
    """As `scatter_reduce` shares them out, the initial zero among them."""
    edges, (_, v) = edges_in_order(), point()
    x = torch.randint(-1, 2, (NODES, WIDTH)).double()
    hag = hp.build_hag(edges, num_nodes=NODES)
    ours = transform(lambda x: hp.aggregate(x, hag, reduce), x, v)
    torch.testing.assert_close(ours, transform(reduced(edges, reduce, False), x, v))


@pytest.mark.parametrize("transform", EVERY)
@pytest.mark.parametrize("ties", ["first", "last"])
def test_ties_that_one_source_wins(ties: Any, transform: Any) -> None:
    edges, (_, v) = edges_in_order(), point()
    x = torch.randint(-1, 2, (NODES, WIDTH)).double()
    hag = hp.build_hag(edges, num_nodes=NODES)
    _, winner = torch.ops.hag_plugin.winners(
        x, hag.row_ptr, hag.col, "", True, ties == "last", NODES
    )

    def g(x: Tensor) -> Tensor:
        won = winner if transform.__name__ not in MANY_POINTS else winners_of(x)
        return x.gather(-2, won.clamp(min=0)) * (won >= 0)

    def winners_of(x: Tensor) -> Tensor:
        found: Tensor = torch.ops.hag_plugin.winners(
            x, hag.row_ptr, hag.col, "", True, ties == "last", NODES
        )[1]
        return found

    ours = transform(lambda x: hp.aggregate(x, hag, "max", ties=ties), x, v)
    torch.testing.assert_close(ours, transform(g, x, v))


MANY_POINTS = ("batched", "batched_gradients")


# By everything that an operator takes -----------------------------------------------------------


def cases() -> dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], list[Tensor]]]:
    """Functions of several tensors, the same in plain torch, and where to derive them."""
    edges = edges_in_order()
    hag = hp.build_hag(edges, num_nodes=NODES)
    source, target = with_loops(edges, "add")
    count = torch.bincount(target, minlength=NODES).clamp(min=1).unsqueeze(-1)
    x, b = point()
    s, t = numbers(NODES), numbers(NODES)
    w, w_loops = numbers(edges.shape[1]), numbers(NODES)
    arrays = (hag.row_ptr, hag.col)
    key = torch.randint(0, 2, (NODES, WIDTH)).double()

    def weighted(x: Tensor, w: Tensor, loops: Tensor, s: Tensor, t: Tensor) -> Tensor:
        how = {"self_loops": "add", "source_scale": s, "target_scale": t, "loop_weight": loops}
        return weighted_aggregate(x, hag, w, "mean", **how)

    def plain_weighted(x: Tensor, w: Tensor, loops: Tensor, s: Tensor, t: Tensor) -> Tensor:
        weight = torch.cat([w, loops]).unsqueeze(-1)
        rows = (x * s.unsqueeze(-1))[source] * weight
        return torch.zeros_like(x).index_add(0, target, rows) / count * t.unsqueeze(-1)

    def dots(a: Tensor, b: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return torch.ops.hag_plugin.edge_dot(a, b, *arrays, s, t, "add", "sum", hag.arrays.token)

    def plain_dots(a: Tensor, b: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return (a[source] * b[target]).sum(-1) * s[source] * t[target]

    def masked(v: Tensor) -> Tensor:
        return torch.ops.hag_plugin.masked_sum(v, key, key.flip(0), *arrays, "", False)

    def plain_masked(v: Tensor) -> Tensor:
        here = key[edges[0]] == key.flip(0)[edges[1]]
        return torch.zeros_like(v).index_add(0, edges[1], v[edges[0]] * here)

    def mean(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return hp.aggregate(x, hag, "mean", self_loops="add", source_scale=s, target_scale=t)

    def plain_mean(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        rows = (x * s.unsqueeze(-1))[source]
        return torch.zeros_like(x).index_add(0, target, rows) / count * t.unsqueeze(-1)

    return {
        "weighted": (weighted, plain_weighted, [x, w, w_loops, s, t]),
        "edge_dot": (dots, plain_dots, [x, b, s, t]),
        "masked_sum": (masked, plain_masked, [x]),
        "mean": (mean, plain_mean, [x, s, t]),
    }


NAMES = ("weighted", "edge_dot", "masked_sum", "mean")


@pytest.mark.parametrize("name", NAMES)
def test_by_every_tensor(name: str) -> None:
    ours, plain, at = cases()[name]
    every = tuple(range(len(at)))
    towards = tuple(torch.randn_like(a) for a in at)
    for f in (
        lambda h: torch.func.jacrev(h, every)(*at),
        lambda h: torch.func.jacfwd(h, every)(*at),
        lambda h: torch.func.jvp(h, tuple(at), towards),
        lambda h: torch.func.hessian(lambda *a: h(*a).pow(2).sum(), every)(*at),
    ):
        torch.testing.assert_close(f(ours), f(plain))


@pytest.mark.parametrize("name", NAMES)
def test_batches_of_every_tensor(name: str) -> None:
    """Any of the tensors may be a batch, along any of its dimensions."""
    ours, _, at = cases()[name]
    many = [torch.stack([a, a.cos(), a.sin()], dim=-1) for a in at]
    for chosen in range(1, 2 ** len(at)):
        picked = [bool(chosen >> i & 1) for i in range(len(at))]
        args = [m if p else a for m, a, p in zip(many, at, picked, strict=True)]
        y = torch.vmap(ours, in_dims=tuple(-1 if p else None for p in picked))(*args)
        each = [
            ours(*(a[..., i] if p else a for a, p in zip(args, picked, strict=True)))
            for i in range(3)
        ]
        torch.testing.assert_close(y, torch.stack(each))


@pytest.mark.parametrize("name", NAMES)
def test_torchs_own_checks(name: str) -> None:
    ours, _, at = cases()[name]
    leaves = [a.clone().requires_grad_() for a in at]
    gradcheck(
        ours,
        leaves,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )
    gradgradcheck(ours, leaves, check_fwd_over_rev=True, check_batched_grad=True)


@pytest.mark.parametrize("ties", ["even", "first"])
def test_torchs_own_checks_of_a_maximum(ties: Any) -> None:
    hag = hp.build_hag(edges_in_order(), num_nodes=NODES)
    x = torch.randn(2, NODES, WIDTH, dtype=torch.float64, requires_grad=True)
    gradcheck(
        lambda x: hp.aggregate(x, hag, "max", ties=ties),
        [x],
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types(dtype: torch.dtype) -> None:
    """A batch of scales rounds no more than the scales do one by one."""
    hag = hp.build_hag(edges_in_order(), num_nodes=NODES)
    x, s = torch.randn(NODES, WIDTH).to(dtype), torch.rand(3, NODES)
    y = torch.vmap(lambda s: hp.aggregate(x, hag, source_scale=s, target_scale=s))(s)
    each = [hp.aggregate(x, hag, source_scale=row, target_scale=row) for row in s]
    assert y.dtype == dtype
    torch.testing.assert_close(y, torch.stack(each))
    tangent = jvp(lambda x: hp.aggregate(x, hag, target_scale=s[0]), x, x)
    torch.testing.assert_close(tangent, hp.aggregate(x, hag, target_scale=s[0]))


# Sequences --------------------------------------------------------------------------------------


@pytest.mark.mostly_slow("*jvp", "vjp", "hessian", "batched", "jac*")
@pytest.mark.parametrize("transform", [*FIRST, *WHOLE])
def test_sequences(transform: Any) -> None:
    edges, (x, v) = edges_in_order(), point()
    lstm = nn.LSTM(WIDTH, WIDTH).double()
    matrices = torch.randn(10, WIDTH, WIDTH, dtype=torch.float64)
    lists = [edges[0, edges[1] == i] for i in range(NODES)]

    def states(x: Tensor) -> Tensor:
        w_input, w_hidden, b_input, b_hidden = lstm.parameters()
        rows = []
        for ids in lists:
            h = c = torch.zeros_like(x[:1])
            for i in ids.tolist():
                gates = x[i : i + 1] @ w_input.t() + h @ w_hidden.t() + b_input + b_hidden
                a, f, g, o = gates.chunk(4, -1)
                c = f.sigmoid() * c + a.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
            rows.append(h)
        return torch.cat(rows)

    def summed(x: Tensor) -> Tensor:
        rows = []
        for ids in lists:
            terms = [x[i : i + 1] @ matrices[place].t() for place, i in enumerate(ids.tolist())]
            rows.append(sum(terms, torch.zeros_like(x[:1])))
        return torch.cat(rows)

    for f, g in (
        (lambda x: lstm_aggregate(x, build_sequence(edges, num_nodes=NODES), lstm), states),
        (lambda x: child_sum(x, build_sequence(edges, num_nodes=NODES), matrices), summed),
    ):
        torch.testing.assert_close(transform(f, x, v), transform(g, x, v))


# Around transforms ------------------------------------------------------------------------------


@pytest.mark.mostly_slow("*-jvp")
@pytest.mark.parametrize("transform", [jvp, batched_gradients, hessian])
@pytest.mark.parametrize("how", [("mean", "even"), ("max", "even"), ("max", "first")])
def test_compiled(how: tuple[Any, Any], transform: Any) -> None:
    torch._dynamo.reset()
    reduce, ties = how
    hag = hp.build_hag(edges_in_order(), num_nodes=NODES)
    x, v = point()

    def derivative(x: Tensor, v: Tensor) -> Any:
        return transform(lambda x: hp.aggregate(x, hag, reduce, ties=ties), x, v)

    compiled = torch.compile(derivative, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, v), derivative(x, v))


def test_all_that_is_kept_is_plain() -> None:
    """A transposed graph, degrees, programs and edges that a transform made serve afterwards."""
    edges, (x, _) = edges_in_order(), point()
    hag = hp.build_hag(edges, num_nodes=NODES)

    def used(x: Tensor) -> Tensor:
        assert hag.matches(edges)
        y = hp.aggregate(x, hag.transpose(), "mean", self_loops="add")
        y = hp.aggregate(y, hag, source_scale=hag.degree_scale(-0.5, "fill", x.dtype))
        return y[hag.edge_index[0]] + hp.batch([hag, hag]).num_edges

    torch.func.jacfwd(torch.func.grad(lambda x: used(x).square().sum()))(x)
    hag.check(edges)
    assert torch.equal(hag.edge_index, edges)
    assert used(x.requires_grad_()).sum().isfinite()


def test_made_inside() -> None:
    """A HAG and the order of its weights, of edges that are an argument of the transform."""
    edges, (x, _) = edges_in_order(), point()
    weight = numbers(edges.shape[1])

    def ours(x: Tensor, edges: Tensor, weight: Tensor) -> Tensor:
        hag = hp.build_hag(edges, num_nodes=NODES)
        own = torch.zeros_like(weight).index_put((edge_slots(edges, hag),), weight)
        assert factorise(edges, weight, NODES, NODES) is None
        return weighted_aggregate(hp.aggregate(x, hag, "mean"), hag, own).square().sum()

    def plain(x: Tensor, edges: Tensor, weight: Tensor) -> Tensor:
        y = reduced(edges, "mean", False)(x)
        return scattered(y[edges[0]] * weight.unsqueeze(-1), edges[1], "sum").square().sum()

    found = torch.func.grad(ours, (0, 2))(x, edges, weight)
    torch.testing.assert_close(found, torch.func.grad(plain, (0, 2))(x, edges, weight))


def test_graphs_cannot_be_a_batch() -> None:
    hag = hp.build_hag(edges_in_order(), num_nodes=NODES)
    x, _ = point()
    cols = torch.stack([hag.col, hag.col])
    with pytest.raises(ValueError, match=r"a batch of graphs from vmap.*hag_plugin.batch"):
        torch.vmap(
            lambda col: torch.ops.hag_plugin.aggregate(
                x, hag.row_ptr, col, None, None, NODES, "", False, "sum"
            )
        )(cols)


def test_out_is_refused_in_transforms() -> None:
    hag = hp.build_hag(edges_in_order(), num_nodes=NODES)
    x, v = point()
    out = torch.empty_like(x)
    with pytest.raises(ValueError, match=r"out= is for inference"):
        jvp(lambda x: hp.aggregate(x, hag, out=out), x, v)


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("reduce", SCATTER)
def test_negative_bit(reduce: Any, width: int) -> None:
    """`imag` of a conjugate is a view whose numbers stand negated in memory."""
    hag = hp.build_hag(edges_in_order(), num_nodes=NODES)
    z = torch.randn(NODES, width, dtype=torch.complex128, requires_grad=True)
    view = z.conj().imag
    assert view.is_neg()
    y = hp.aggregate(view, hag, reduce, source_scale=view[:, 0], target_scale=view[:, 0])
    plain = view.detach().resolve_neg().clone()
    expected = hp.aggregate(plain, hag, reduce, source_scale=plain[:, 0], target_scale=plain[:, 0])
    torch.testing.assert_close(y.detach(), expected)
    out = torch.empty(NODES, width, dtype=torch.float64)
    torch.testing.assert_close(
        hp.aggregate(view.detach(), hag, reduce, out=out), hp.aggregate(plain, hag, reduce)
    )
    weight = torch._neg_view(numbers(hag.num_edges))
    torch.testing.assert_close(
        weighted_aggregate(plain, hag, weight), weighted_aggregate(plain, hag, weight.clone())
    )
    grad = torch.autograd.grad(y.sum(), z)[0]
    twin = z.detach().conj().imag.resolve_neg().clone().requires_grad_()
    column = twin[:, 0]
    hp.aggregate(twin, hag, reduce, source_scale=column, target_scale=column).sum().backward()
    torch.testing.assert_close(grad.imag, -twin.grad)
