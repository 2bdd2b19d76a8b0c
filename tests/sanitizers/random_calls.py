"""Random graphs through the native module, against `reference.py`: for builds with a sanitizer.

    python -m tests.sanitizers.random_calls SECONDS SEED

Numbers of threads are drawn, too, and graphs large enough that these have work; some calls come
from several Python threads at once. The last line says how many cases ran.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

import hag_plugin as hp
from hag_plugin.hag.build import build_hags
from hag_plugin.hag.program import METHODS
from hag_plugin.kernels import _cpu
from hag_plugin.ops.weights import edge_slots, factorise, weighted_aggregate

from .. import reference
from ..attending import FORMS, NORMALISATIONS, how_of, tensors_of
from ..attending import assert_equal as assert_attention_equal
from ..cases import DTYPES, MODES, TIES
from ..equality import assert_equal, assert_weighted_equal
from ..native_programs import native, random_program, run_native

WIDE = (torch.float64, torch.float32)


class Draw:
    """The sizes and choices of one case."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        torch.manual_seed(seed)

    def among(self, options: Sequence[Any]) -> Any:
        return options[int(self.rng.integers(len(options)))]

    def up_to(self, most: int) -> int:
        """From 1 on; 1 to 10 as often as 10 to 100."""
        return int(np.exp(self.rng.uniform(0, np.log(most + 1))))

    def graph(
        self, most: int, *, square: bool = False, long_rows: bool = True
    ) -> tuple[Tensor, tuple[int, int]]:
        """Edges `[2, E]` in some order, and how many sources and targets there are."""
        src = self.up_to(1000)
        dst = src if square else self.up_to(1000)
        count = 0 if self.rng.random() < 0.05 else self.up_to(most)
        edges = self.rng.integers(0, (src, dst), (count, 2)).T
        if self.rng.random() < 0.5:  # few rows and duplicates of them: sums are shared
            edges = edges // self.up_to(20) % np.array([[src], [dst]])
        if long_rows and self.rng.random() < 0.2:  # that are summed in parts
            long_row = self.rng.integers(0, (src, 1), (5000, 2)).T
            edges = np.concatenate([edges, long_row], axis=1)
        if self.rng.random() < 0.3:
            edges = edges[:, np.lexsort(edges)]
        return torch.from_numpy(np.ascontiguousarray(edges)), (src, dst)

    def hag(self, square: bool = False) -> tuple[Tensor, hp.HAG]:
        method = self.among(METHODS)
        # The paper's algorithm takes long to search a long row.
        greedy = method == "greedy"
        edges, size = self.graph(2000 if greedy else 20_000, square=square, long_rows=not greedy)
        return edges, hp.build_hag(edges, size=size, method=method)


def sums(draw: Draw) -> None:
    mode, reduce = draw.among(MODES), draw.among(("sum", "mean", "max", "min"))
    edges, hag = draw.hag(square=mode is not False)
    x = torch.randn(*draw.among(((), (2,))), hag.num_src, draw.up_to(70)).to(draw.among(DTYPES))
    how: dict[str, Any] = {"self_loops": mode}
    if reduce == "sum" and draw.among((True, False)):
        how |= {"source_scale": torch.randn(hag.num_src), "target_scale": torch.randn(hag.num_dst)}
    leaf = x.clone().requires_grad_()
    y = hp.aggregate(leaf, hag, reduce, ties=draw.among(TIES), **how)
    assert_equal(y.detach(), x, edges, hag.num_dst, reduce, **how)
    y.sum().backward()
    hag.check(edges, mode)
    with ThreadPoolExecutor(3) as pool:
        for other in pool.map(lambda _: hp.aggregate(x, hag, reduce, **how), range(3)):
            assert torch.equal(other, y)


def weighted(draw: Draw) -> None:
    edges, hag = draw.hag()
    weight = torch.randn(edges.shape[1])
    ordered = torch.empty_like(weight)
    ordered[edge_slots(edges, hag)] = weight
    x = torch.randn(hag.num_src, draw.up_to(70)).to(draw.among(DTYPES))
    leaves = x.requires_grad_(), ordered.requires_grad_()
    y = weighted_aggregate(leaves[0], hag, leaves[1])
    assert_weighted_equal(y.detach(), x.detach(), edges, weight, hag.num_dst)
    y.sum().backward()
    factorise(edges, torch.ones(edges.shape[1]), hag.num_src, hag.num_dst)


def attention(draw: Draw) -> None:
    edges, size = draw.graph(3000)
    form, normalise = draw.among(list(FORMS)), draw.among(NORMALISATIONS)
    widths = draw.up_to(9), draw.up_to(40), draw.up_to(40), draw.up_to(10)
    given = tensors_of(form, (*size, edges.shape[1]), widths, draw.among(WIDE))
    given = {name: tensor / 4 for name, tensor in given.items()}
    assert_attention_equal(edges, size, given, normalise, how_of(form))


def programs(draw: Draw) -> None:
    sizes = {"num_src": draw.up_to(100), "num_dst": draw.up_to(100)}
    program = random_program(int(draw.rng.integers(1 << 30)), **sizes)
    x = torch.rand(sizes["num_src"], draw.up_to(300), dtype=draw.among(WIDE))
    reduce = draw.among(_cpu.reducers())
    y = run_native(program, x, reduce, torch.get_num_threads(), native(program))
    rtol = 1e-12 if x.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(y, reference.run_program(program, x, reduce), rtol=rtol, atol=0)


def batches(draw: Draw) -> None:
    graphs = [draw.graph(300, square=True) for _ in range(draw.up_to(60))]
    edges, sizes = [edges for edges, _ in graphs], [size[0] for _, size in graphs]
    hags = build_hags(edges, sizes, self_loops=[False, "fill"], transpose=True)
    chosen = [int(i) for i in draw.rng.integers(len(hags), size=draw.up_to(20))]
    whole = hp.batch([hags[i] for i in chosen])
    first = np.cumsum([0, *(sizes[i] for i in chosen)])
    union = torch.cat([edges[i] + int(at) for i, at in zip(chosen, first, strict=False)], dim=1)
    whole.check(union, draw.among(MODES))
    whole.transpose().check(union.flip(0))


CASES: tuple[Callable[[Draw], None], ...] = (sums, weighted, attention, programs, batches)


def main(seconds: float, seed: int) -> None:
    until, count = time.monotonic() + seconds, 0
    while time.monotonic() < until or count < len(CASES):
        draw = Draw(seed + count)
        torch.set_num_threads(draw.among((1, 2, 3, 8)))
        try:
            CASES[count % len(CASES)](draw)
        except BaseException:
            print(f"seed {seed + count}: {CASES[count % len(CASES)].__name__}", file=sys.stderr)
            raise
        count += 1
    print(f"{count} random cases from seed {seed} on, {_cpu.instruction_set()}")


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
