"""Prices for a GPU, and a HAG on its way to one, as far as they show without a card."""

from __future__ import annotations

import pytest
import torch

import hag_plugin as hp
from hag_plugin.devices import KINDS
from hag_plugin.hag import cost
from hag_plugin.hag.gpu.schedule import schedule_of
from hag_plugin.hag.program import Options


def cliques(count: int, size: int) -> torch.Tensor:
    one = torch.combinations(torch.arange(size)).T
    both = torch.cat([one, one.flip(0)], 1)
    return torch.cat([both + size * i for i in range(count)], 1)


def priced_for_gpu(edges: torch.Tensor, num_nodes: int, method: str = "auto") -> hp.HAG:
    """As `build_hag(..., device="cuda")` makes it, before it is moved."""
    hag = hp.build_hag(edges, num_nodes=num_nodes, method="none")
    options = Options(method=method, device="cuda")
    return hp.HAG(hag.row_ptr, hag.col, num_nodes, options=options)


def test_a_level_takes_as_long_as_its_bytes_or_its_longest_op() -> None:
    price = KINDS["cuda"].launches
    assert price is not None
    launch, wait = price.seconds, price.seconds_per_wait
    assert cost.launch_seconds(0, 0, 64) == launch
    assert cost.launch_seconds(10, 9, 64) == pytest.approx(launch + 3 * wait)
    moving = 10**9 * 64 * 4 / price.bytes_per_second
    assert cost.launch_seconds(10**9, 9, 64) == pytest.approx(launch + moving)


@pytest.mark.parametrize("seed", range(3))
def test_the_plain_price_is_that_of_the_plain_schedule(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    edges = torch.randint(0, 300, (2, 2000), generator=generator)
    hub = torch.stack([torch.randint(0, 300, (700,), generator=generator), torch.full((700,), 5)])
    hag = priced_for_gpu(torch.cat([edges, hub], 1), 300)
    for mode in (False, "add", "fill"):
        plain = hag.plain_program(mode)
        assert schedule_of(plain).num_levels == 2
        expected = cost.launches_seconds(plain, hag.options)
        assert cost.plain_launches_seconds(hag, hag.options, mode) == pytest.approx(expected)


def test_a_card_is_given_a_hag_only_where_launches_are_paid_for() -> None:
    small = priced_for_gpu(cliques(3, 12), 36)
    assert small.stats("add").intermediates == 0  # one launch of the plain graph is cheaper
    edges, nodes = cliques(400, 90), 36_000
    large = priced_for_gpu(edges, nodes)
    stats = large.stats("add")
    assert stats.intermediates > 0
    assert stats.predicted_seconds < stats.predicted_seconds_before
    assert stats.levels >= schedule_of(large.program("add")).num_levels == 2
    large.check(edges, "add")
