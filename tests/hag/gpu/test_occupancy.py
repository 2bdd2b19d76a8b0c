"""What is said of a GPU's launches, against the schedules counted op by op."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import hag_plugin as hp
from hag_plugin.hag.gpu import occupancy
from hag_plugin.hag.gpu.schedule import Schedule, schedule_of
from hag_plugin.hag.program import Options


def schedules() -> list[Schedule]:
    """A random graph with a hub, one that shares sums and takes a diagonal off, and no edge."""
    hub = torch.stack([torch.arange(400), torch.full((400,), 7)])
    random = torch.cat([torch.randint(0, 400, (2, 3000)), hub], dim=1)
    clique = torch.combinations(torch.arange(40)).T
    cliques = torch.cat([torch.cat([clique, clique.flip(0)], 1) + 40 * i for i in range(9)], 1)
    return [
        schedule_of(hp.build_hag(random, num_nodes=400, method="none").program()),
        schedule_of(hp.build_hag(cliques, num_nodes=360, allow_subtraction=True).program()),
        schedule_of(hp.build_hag(torch.zeros(2, 0, dtype=torch.long), num_nodes=3).program()),
    ]


@pytest.mark.parametrize("width", [1, 16, 64, 300])
def test_counts_of_launches(width: int) -> None:
    found = schedules()
    assert {s.diagonal for s in found} == {0, -1}
    assert max(s.num_levels for s in found) > 1
    for schedule in found:
        whole = occupancy.occupancy(schedule, width, multiprocessors=2)
        assert len(whole.launches) == schedule.num_levels
        for each, (first, last) in zip(whole.launches, schedule.levels, strict=True):
            sizes, target = schedule.op_ptr.diff()[first:last], schedule.target[first:last]
            diagonals = sum(t >= 0 for t in target.tolist()) if schedule.diagonal else 0
            assert each.ops == len(sizes)
            assert each.rows == int(sizes.sum()) + each.ops + diagonals
            assert each.longest_op == int(sizes.max())
            assert each.width_blocks * 128 >= width > (each.width_blocks - 1) * 128
            assert each.instances % each.width_blocks == 0
            # a warp has four features a thread
            held = each.instances // each.width_blocks * each.warps * 128
            assert held >= each.ops * min(width, 128)
            assert each.occupancy == min(1.0, each.instances * each.warps / (2 * 15))
        assert whole.serial_chain >= _longest_chain(schedule)
        assert whole.scratch_bytes == int((schedule.target < 0).sum()) * width * 4


def _longest_chain(schedule: Schedule) -> int:
    """Rows that one op reads after another, along the ops that wait for one another."""
    chain: dict[int, int] = {}  # of each row of scratch
    longest = 0
    ends = schedule.op_ptr.tolist()
    for op, target in enumerate(schedule.target.tolist()):
        source = schedule.source[ends[op] : ends[op + 1]].tolist()
        mine = len(source) + max((chain[s] for s in source if s < 0), default=0)
        chain[target] = mine
        longest = max(longest, mine)
    return longest


def test_a_small_graph_leaves_the_card_idle_and_a_large_one_does_not() -> None:
    loops = torch.arange(200_000).expand(2, -1)
    small = schedule_of(hp.build_hag(loops[:, :20], num_nodes=20, method="none").program())
    (launch,) = occupancy.launches(small, 64)
    assert (launch.instances, launch.warps) == (10, 1)
    assert launch.occupancy == 10 / (132 * 15)
    large = schedule_of(hp.build_hag(loops, num_nodes=200_000, method="none").program())
    (launch,) = occupancy.launches(large, 64)
    assert (launch.instances, launch.warps, launch.occupancy) == (25_000, 4, 1.0)


def test_stats_have_it_where_a_plan_is_for_a_gpu() -> None:
    hag = hp.build_hag(torch.tensor([[0, 1, 2], [1, 0, 0]]), num_nodes=3, width=16)
    assert hag.stats().gpu is None
    options = Options(device="cuda", width=16)
    priced = hp.HAG(hag.row_ptr, hag.col, 3, options=options)
    assert priced.stats().gpu == occupancy.occupancy(schedule_of(priced.program()), 16)


def test_needs_no_triton() -> None:
    code = "import sys; sys.modules['triton'] = None; import hag_plugin.hag.gpu.occupancy"
    subprocess.run([sys.executable, "-c", code], check=True)
