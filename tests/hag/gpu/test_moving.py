"""HAGs on their way to a card: page-locked memory, and all that a first launch would wait for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.data._utils.pin_memory import pin_memory

import hag_plugin as hp
from hag_plugin.hag.gpu.schedule import KEPT, schedule_of

from .test_memory import graph, tensors_in

MODES = (False, "add")


def in_sets() -> hp.HAG:
    """As a loader batches graphs of a data set: their programs lie in sets."""
    pyg = pytest.importorskip("torch_geometric")
    edges = graph("symmetric").edge_index
    data = [pyg.data.Data(edge_index=edges, num_nodes=60)] * 3
    hags = [hp.pyg.ToHAG(self_loops=[*MODES])(one.clone()).hag for one in data]
    return hp.batch(hags)


HAGS: dict[str, Callable[[], hp.HAG]] = {
    "symmetric": lambda: graph("symmetric"),
    "with its reverse": lambda: graph("with its reverse"),
    "batch": lambda: graph("batch"),
    "in sets": in_sets,
}


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """Page-locked memory, which there is none of without a card: copies stand for it. By address
    that of what each was made of."""
    made: dict[int, int] = {}
    kept = []

    def pin(self: Tensor, device: object = None) -> Tensor:
        kept.append(self.clone())
        made[kept[-1].data_ptr()] = self.data_ptr()
        return kept[-1]

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    return made


def arrays_of(hag: hp.HAG) -> list[Tensor]:
    """All but tokens, which stay with the host."""
    return [t for t in tensors_in(hag, set()) if t.numel() and t.dim()]


@pytest.mark.parametrize("name", HAGS)
def test_all_of_a_hag_is_pinned(name: str, pinned: dict[int, int]) -> None:
    hag = HAGS[name]()
    moved = hag.pin_memory()
    arrays = arrays_of(moved)
    assert len(arrays) > 8
    assert all(t.data_ptr() in pinned for t in arrays)
    assert moved._programs.keys() == hag._programs.keys() != set()
    for key, program in moved._programs.items():
        assert vars(program)["is_plain"] == hag._programs[key].is_plain
        mine, theirs = program.if_kept(KEPT), schedule_of(hag._programs[key])
        for one in ("op_ptr", "source", "target", "row"):
            assert torch.equal(getattr(mine, one), getattr(theirs, one))
    # What goes on to a card is made of these: nothing is made anew, which pageable memory would be.
    again = moved.pin_memory()
    made_of = {pinned[t.data_ptr()] for t in arrays_of(again)}
    assert made_of <= {t.data_ptr() for t in arrays}
    x = torch.randn(hag.num_src, 3)
    assert torch.equal(hp.aggregate(x, moved), hp.aggregate(x, hag))


def test_what_a_loader_gives_is_pinned(pinned: dict[int, int]) -> None:
    """As the thread of a `DataLoader` does it."""
    pyg = pytest.importorskip("torch_geometric")
    edges = graph("symmetric").edge_index
    data = hp.pyg.ToHAG()(pyg.data.Data(x=torch.randn(60, 2), edge_index=edges))
    batch = pyg.data.Batch.from_data_list([data, data.clone()])
    found = pin_memory({"one": (data, [batch]), "hag": data.hag})
    one, (both,) = found["one"]
    for each in (one, both):
        assert each.x.data_ptr() in pinned
        assert each.edge_index.data_ptr() in pinned
    for hag, given in ((one.hag, data.hag), (both.hag, batch.hag), (found["hag"], data.hag)):
        assert hag.content_hash == given.content_hash
        assert all(t.data_ptr() in pinned for t in (hag.arrays.row_ptr, hag.arrays.col))
    moved = both.to("cpu", non_blocking=True)
    assert moved.hag.content_hash == batch.hag.content_hash
