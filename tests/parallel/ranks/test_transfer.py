"""Moving shards: values, gradients and bytes, against slices and sums of the whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hag_plugin.parallel import layouts
from hag_plugin.parallel.layouts import COLUMNS, REPLICATED, ROWS, Layout, Message, chunk_sizes
from hag_plugin.parallel.ranks import transfer
from hag_plugin.parallel.ranks.comm import Group

from ..run_ranks import run_processes, run_threads

SIZES = (2, 4, 8, 16)


class Whole:
    """`[N, width]` tensors that every rank can make, and their shards."""

    def __init__(self, seed: int, size: int, dtype: torch.dtype) -> None:
        random = np.random.default_rng(seed)
        self.size, self.dtype = size, dtype
        if seed % 2:
            self.rows = random.integers(0, 6, size)
            self.rows[seed % size] += 1  # one row at least
        else:
            self.rows = chunk_sizes(int(random.integers(size, 4 * size)), size)
        self.nodes = int(self.rows.sum())
        self.width = int(random.integers(1, 2 * size + 2))
        self.random = torch.Generator().manual_seed(seed)

    def values(self, *shape: int) -> Tensor:
        """Small integers, so that sums are exact in every order and type."""
        return torch.randint(-4, 5, shape, generator=self.random).to(self.dtype)

    def whole(self) -> Tensor:
        """One tensor."""
        return self.values(self.nodes, self.width)

    def parts(self) -> Tensor:
        """One of each rank, `[P, N, width]`."""
        return self.values(self.size, self.nodes, self.width)

    def shard(self, whole: Tensor, layout: Layout, rank: int) -> Tensor:
        """What `Layout` says of a rank."""
        columns = {ROWS: 1, COLUMNS: self.size}.get(layout, layout.columns)
        if layout == REPLICATED:
            return whole
        i, j = divmod(rank, columns)
        bounds = np.concatenate([[0], np.cumsum(self.rows)])[::columns]
        features = np.arange(self.width)
        block = -(-self.width // columns)
        return whole[bounds[i] : bounds[i + 1], features // block == j]


def check(
    what: str,
    group: Group,
    call: Callable[[Tensor], Tensor],
    x: Tensor,
    expected: Tensor,
    upstream: Tensor,
    gradient: Tensor,
    messages: list[Message],
) -> None:
    """Values, gradient and bytes of one call on this rank."""
    group.sent.reset()
    x = x.clone().requires_grad_()
    out = call(x)
    assert out.dtype == x.dtype
    assert torch.equal(out, expected), what
    out.backward(upstream)
    assert x.grad is not None
    assert torch.equal(x.grad, gradient), what
    for phase in ("forward", "backward"):
        sent = sum(int(m.sent[group.rank]) for m in messages if m.phase == phase)
        assert group.sent[phase] == sent, (what, phase)
    assert group.sent.total == group.sent["forward"] + group.sent["backward"]
    for collective in {m.collective for m in messages}:
        counted = sum(n for (_, c), n in group.sent.bytes.items() if c == collective)
        assert counted == sum(
            int(m.sent[group.rank]) for m in messages if m.collective == collective
        )


def check_whole(rank: int, seed: int, dtype: torch.dtype) -> None:
    """Functions between the whole and shards, or between partial sums and shards."""
    group = Group.world()
    w = Whole(seed, group.size, dtype)
    rows, width, size, s = w.rows, w.width, group.size, dtype.itemsize
    value, parts, upstream, uparts = w.whole(), w.parts(), w.whole(), w.parts()
    total, utotal = parts.sum(0), uparts.sum(0)

    def both(there: Callable[..., Message], back: Callable[..., Message]) -> list[Message]:
        return [there(rows, width, s, "forward"), back(rows, width, s, "backward")]

    def mine(whole: Tensor, layout: Layout = ROWS) -> Tensor:
        return w.shard(whole, layout, rank)

    gather, scatter = layouts.gather_rows, layouts.scatter_rows
    t = transfer
    check("gather_rows", group, lambda x: t.gather_rows(x, rows, group), mine(value), value,
          uparts[rank], mine(utotal), both(gather, scatter))  # fmt: skip
    check("replicate_rows", group, lambda x: t.replicate_rows(x, rows, group), mine(value), value,
          upstream, mine(upstream), both(gather, gather)[:1])  # fmt: skip
    check("slice_rows", group, lambda x: t.slice_rows(x, rows, group), value, mine(value),
          mine(upstream), upstream, both(gather, gather)[1:])  # fmt: skip
    check("scatter_rows", group, lambda x: t.scatter_rows(x, rows, group), parts[rank],
          mine(total), mine(upstream), upstream, both(scatter, gather))  # fmt: skip
    everything = [
        layouts.even("all_reduce", w.nodes * width * s, size, phase)
        for phase in ("forward", "backward")
    ]
    check("sum_parts", group, lambda x: t.sum_parts(x, group), parts[rank], total, upstream,
          upstream, everything[:1])  # fmt: skip
    check("fan_out", group, lambda x: t.fan_out(x, group), value, value, uparts[rank], utotal,
          everything[1:])  # fmt: skip
    check("sum_statistics", group, lambda x: t.sum_statistics(x, group), parts[rank], total,
          uparts[rank], utotal, everything)  # fmt: skip
    shard = w.nodes * int(chunk_sizes(width, size).max()) * s
    columns = [
        layouts.even("reduce_scatter", shard, size, "forward"),
        layouts.even("all_gather", shard, size, "backward"),
    ]
    check("scatter_columns", group, lambda x: t.scatter_columns(x, group), parts[rank],
          mine(total, COLUMNS), mine(upstream, COLUMNS), upstream, columns)  # fmt: skip
    check("replicate_columns", group, lambda x: t.replicate_columns(x, width, group),
          mine(value, COLUMNS), value, upstream, mine(upstream, COLUMNS),
          [layouts.even("all_gather", shard, size, "forward")])  # fmt: skip
    check("slice_columns", group, lambda x: t.slice_columns(x, group), value,
          mine(value, COLUMNS), mine(upstream, COLUMNS), upstream, columns[1:])  # fmt: skip


def check_reshard(rank: int, seed: int, dtype: torch.dtype) -> None:
    """Every layout to every other."""
    group = Group.world()
    w = Whole(seed, group.size, dtype)
    value, upstream = w.whole(), w.whole()
    kinds = [REPLICATED, ROWS, COLUMNS]
    kinds += [Layout("grid", k) for k in range(2, group.size // 2 + 1) if group.size % k == 0]
    for before in kinds:
        for after in kinds:
            sizes = w.rows, w.width, dtype.itemsize
            messages = layouts.reshard(before, after, *sizes, "forward")
            messages += layouts.reshard(after, before, *sizes, "backward")

            def call(x: Tensor, before: Layout = before, after: Layout = after) -> Tensor:
                return transfer.reshard(x, before, after, w.rows, w.width, group)

            check(f"{before} to {after}", group, call, w.shard(value, before, rank),
                  w.shard(value, after, rank), w.shard(upstream, after, rank),
                  w.shard(upstream, before, rank), messages)  # fmt: skip


def check_grid(rank: int, seed: int, dtype: torch.dtype) -> None:
    """Functions for grids by name, and collectives in the groups of a grid."""
    group = Group.world()
    w = Whole(seed, group.size, dtype)
    value, parts, upstream = w.whole(), w.parts(), w.whole()
    s, nodes, width = dtype.itemsize, w.nodes, w.width
    for k in range(2, group.size // 2 + 1):
        if group.size % k:
            continue
        layout = Layout("grid", k)
        there = layouts.reshard(layout, REPLICATED, w.rows, width, s, "forward")
        back = layouts.reshard(layout, REPLICATED, w.rows, width, s, "backward")
        mine, umine = w.shard(value, layout, rank), w.shard(upstream, layout, rank)
        check("replicate_grid", group,
              lambda x, k=k: transfer.replicate_grid(x, w.rows, width, k, group),
              mine, value, upstream, umine, there)  # fmt: skip
        check("slice_grid", group, lambda x, k=k: transfer.slice_grid(x, w.rows, k, group),
              value, mine, umine, upstream, back)  # fmt: skip
        # Partial outputs of a band of rows, summed over its blocks of features.
        band = Whole.shard(w, value, Layout("grid", k), rank).shape[0]
        first = int(w.rows[: rank // k * k].sum())
        among = group.neighbours(k)
        assert among.ranks == tuple(range(rank // k * k, rank // k * k + k))
        partial = parts[:, first : first + band]
        shard = band * int(chunk_sizes(width, k).max()) * s
        sent = np.full(group.size, (k - 1) * shard)
        check("scatter_columns", group, lambda x, a=among: transfer.scatter_columns(x, a),
              partial[rank], w.shard(parts[list(among.ranks)].sum(0), layout, rank), umine,
              upstream[first : first + band],
              [Message("reduce_scatter", sent, "forward"), Message("all_gather", sent, "backward")],
              )  # fmt: skip
        strided = group.strided(k)
        assert strided.ranks == tuple(range(rank % k, group.size, k))
        sent = np.full(
            group.size, layouts.sent_bytes("all_reduce", nodes * width * s, strided.size)
        )
        check("sum_parts", group, lambda x, a=strided: transfer.sum_parts(x, a), parts[rank],
              parts[list(strided.ranks)].sum(0), upstream, upstream,
              [Message("all_reduce", sent, "forward")])  # fmt: skip


def check_exchange(rank: int, seed: int, dtype: torch.dtype) -> None:
    """Uneven counts, some of them none."""
    group = Group.world()
    w = Whole(seed, group.size, dtype)
    counts = np.random.default_rng(seed).integers(0, 4, (group.size, group.size))  # [to, from]
    if seed % 3 == 0:
        np.fill_diagonal(counts, 0)
    largest, width = int(counts.max()), 3
    rows = w.values(group.size, group.size, largest, width)  # [to, from, row]
    grads = w.values(group.size, group.size, largest, width)

    def sent_by(t: Tensor, p: int) -> Tensor:
        return torch.cat([t[q, p, : counts[q, p]] for q in range(group.size)])

    def got_by(t: Tensor, p: int) -> Tensor:
        return torch.cat([t[p, q, : counts[p, q]] for q in range(group.size)])

    others = counts - np.diag(np.diag(counts))
    messages = [
        Message("exchange", others.sum(axis=0) * width * dtype.itemsize, "forward"),
        Message("exchange", others.sum(axis=1) * width * dtype.itemsize, "backward"),
    ]
    send, receive = counts[:, rank].tolist(), counts[rank].tolist()
    check("exchange", group, lambda x: transfer.exchange(x, send, receive, group),
          sent_by(rows, rank), got_by(rows, rank), got_by(grads, rank), sent_by(grads, rank),
          messages)  # fmt: skip


def check_gradients(rank: int, seed: int, dtype: torch.dtype) -> None:
    """Sums of weight gradients: of those that want one, in one all-reduce."""
    group = Group.world()
    w = Whole(seed, group.size, dtype)
    shapes = [(2, 3), (1,), (), (4, 1)]
    grads = [w.values(group.size, *shape) for shape in shapes]
    weights = [w.values(*shape).requires_grad_(i != 1) for i, shape in enumerate(shapes)]
    copies = transfer.sum_gradients(weights, group)
    assert all(torch.equal(a, b) for a, b in zip(copies, weights, strict=True))
    used = [c * g[rank] for c, g in zip(copies, grads, strict=True)]
    sum(u.sum() for u in used[:-1]).backward()  # type: ignore[union-attr]
    for i in (0, 2):
        assert torch.equal(weights[i].grad, grads[i].sum(0))  # type: ignore[arg-type]
    assert weights[1].grad is None
    assert torch.equal(weights[3].grad, torch.zeros(4, 1, dtype=dtype))  # type: ignore[arg-type]
    values = 6 + 1 + 4
    expected = layouts.sent_bytes("all_reduce", values * dtype.itemsize, group.size)
    assert group.sent.phases == {"update": expected}
    assert transfer.sum_gradients([], group) == []


CHECKS = (check_whole, check_reshard, check_grid, check_exchange, check_gradients)


@pytest.mark.mostly_slow("2", "4")
@pytest.mark.parametrize("size", SIZES)
def test_values_gradients_and_bytes(size: int) -> None:
    @settings(max_examples=48 // size)
    @given(seed=st.integers(0, 2**31), dtype=st.sampled_from([torch.float64, torch.bfloat16]))
    def check(seed: int, dtype: torch.dtype) -> None:
        run_threads(size, lambda rank: [f(rank, seed, dtype) for f in CHECKS])

    check()


def on_processes(rank: int, seeds: list[int]) -> None:
    for seed in seeds:
        for dtype in (torch.float64, torch.float32):
            for f in CHECKS:
                f(rank, seed, dtype)


@pytest.mark.parametrize("size", [2, 4])
def test_on_processes(size: int) -> None:
    run_processes(size, on_processes, [0, 3])


def errors(rank: int) -> Any:
    group = Group.world()
    x = torch.zeros(2, 3)
    calls = {
        "rows has 1 entries": lambda: transfer.gather_rows(x, [2], group),
        r"\[2, 3\]; expected \[4, 3\]": lambda: transfer.gather_rows(x, [4, 4], group),
        r"\[2, 3\]; expected \[9, 3\]": lambda: transfer.scatter_rows(x, [4, 5], group),
        r"\[2, 3\]; expected \[8, 3\]": lambda: transfer.slice_rows(x, [4, 4], group),
        r"\[2, 3\]; expected \[1, 3\]": lambda: transfer.rows_to_columns(x, [1, 1], group),
        r"\[2, 3\]; expected \[4, ": lambda: transfer.columns_to_rows(x, [2, 2], 3, group),
        r"send is \[1\]": lambda: transfer.exchange(x, [1], [1, 1], group),
        "2 ranks make no grid of 3": lambda: group.neighbours(3),
    }
    for words, call in calls.items():
        with pytest.raises(ValueError, match=words):
            call()


def test_wrong_shapes_are_named() -> None:
    run_threads(2, errors)


def test_a_slice_is_a_copy() -> None:
    """Work in place on a shard leaves the whole as it is."""

    def case(rank: int) -> bool:
        whole = torch.ones(4, 2)
        transfer.slice_rows(whole, [2, 2], Group.world()).zero_()
        return bool((whole == 1).all())

    assert run_threads(2, case) == [True, True]
