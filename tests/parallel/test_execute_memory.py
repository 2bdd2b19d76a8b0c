"""What a rank holds while it trains, against its plan; plans that are made on the spot."""

from __future__ import annotations

import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch_geometric import nn as pyg
from torch_geometric.data import Data

import hag_plugin as hp
from hag_plugin.parallel.comm import Group
from hag_plugin.parallel.planner import planned
from hag_plugin.parallel.trace_model import trace

from .equality import space_with
from .ranks import run_threads
from .test_execute_models import by_strategy

NODES, WIDTH, CLASSES = 4000, 64, 16


AT = threading.local()
# Autograd does these in place in a backward pass, but not while a mode looks on.
ADDITIONS = {
    torch.ops.aten.add.Tensor, torch.ops.aten.index_add.default, torch.ops.aten.scatter.src,
    torch.ops.aten.scatter_add.default,
}  # fmt: skip


@pytest.fixture(autouse=True)
def sending(monkeypatch: pytest.MonkeyPatch) -> None:
    """Says when a rank is inside a collective."""
    mark_collectives(monkeypatch.setattr)


def mark_collectives(change: Any) -> None:
    """As `sending`, with what sets an attribute."""
    run = Group._run

    def marked(self: Group, what: str, call: Any) -> None:
        AT.sending = True
        try:
            run(self, what, call)
        finally:
            AT.sending = False

    change(Group, "_run", marked)


class Peak(TorchDispatchMode):
    """The most bytes of tensors that were alive at once on this thread."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.now = self.most = 0
        self.added: Tensor | None = None

    def see(self, tensor: Tensor) -> None:
        """Counts a tensor's storage until it dies."""
        if isinstance(tensor, DTensor):
            tensor = tensor.to_local()
        storage = tensor.untyped_storage()
        if tensor.device.type == "meta" or storage._cdata in self.alive:
            return
        self.alive[storage._cdata] = storage.nbytes()
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._dies, storage._cdata)

    def settle(self) -> None:
        """Counts the last sum, after what it was added to has died if nobody else has that."""
        added, self.added = self.added, None
        if added is not None:
            self.see(added)

    def _dies(self, key: int) -> None:
        self.now -= self.alive.pop(key, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(AT, "sending", False):  # one thread moves what all ranks send
            return func(*args, **(kwargs or {}))
        # Views and what is written in place are not new; they may belong to another rank's thread.
        given = {t.untyped_storage()._cdata for t in plain([args, kwargs])}
        self.settle()
        out = func(*args, **(kwargs or {}))
        if func in ADDITIONS and torch._C._current_graph_task_id() != -1:
            self.added = out
            return out
        for tensor in plain(out):
            if tensor.untyped_storage()._cdata not in given:
                self.see(tensor)
        return out


def plain(value: Any) -> list[Tensor]:
    """All tensors in it that have values of their own."""
    found = (t for t in tree_leaves(value) if isinstance(t, Tensor))
    return [t for t in found if not isinstance(t, DTensor) and t.device.type != "meta"]


def data() -> Data:
    generator = torch.Generator().manual_seed(0)
    return Data(
        x=torch.randn(NODES, WIDTH, generator=generator),
        edge_index=torch.randint(NODES, (2, 3 * NODES), generator=generator),
        y=torch.randint(CLASSES, (NODES,), generator=generator),
    )


@pytest.mark.parametrize(
    "strategy",
    ["replicate", "rows, all-gather", "rows, halo", "all-to-all around aggregation",
     "columns, row-split weights"],
)  # fmt: skip
def test_a_rank_holds_no_more_than_its_plan_says(strategy: str) -> None:
    torch.manual_seed(0)
    model, given = pyg.GCN(WIDTH, WIDTH, 3, CLASSES), data()
    space = space_with(trace(model, given, hag=False), 2, by_strategy(strategy))
    plan = planned(space, list(space.cheapest().configs))

    def case(rank: int) -> int:
        ours = hp.parallel.parallelize(model, given, plan)
        optimizer = torch.optim.Adam(ours.parameters())
        local = ours.parallel.data
        with Peak() as peak:
            for tensor in (*ours.parameters(), *local.prepared.features.values()):
                peak.see(tensor.detach())
            for _ in range(2):
                optimizer.zero_grad()
                losses = F.cross_entropy(ours(), local.y, reduction="none")
                ours.parallel.mean(losses).backward()
                del losses
                optimizer.step()
        return peak.most

    most = max(run_threads(2, case))
    held = plan.memory.retained + plan.memory.transient
    assert 0.6 * held <= most <= held


def test_plans_from_files_and_on_the_spot(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, given = pyg.GCN(WIDTH, 8, 2, CLASSES), data()
    hp.parallel.plan(model, given, "a100x8", world_size=2).save(tmp_path / "plan.json")
    expected = model(given.x, given.edge_index).detach()

    def case(rank: int) -> list[Tensor]:
        found = [
            hp.parallel.parallelize(model, given, tmp_path / "plan.json"),
            hp.parallel.parallelize(model, given, topology="a100x8"),
        ]
        assert [type(m) for m in found] == [pyg.GCN, pyg.GCN]
        assert all(m.state_dict().keys() == model.state_dict().keys() for m in found)
        with pytest.raises(TypeError, match="are laid out once"):
            found[0](given.x, given.edge_index)
        again = found[0](found[0].parallel.data)
        return [m.parallel.gather(out) for m, out in
                ((found[0], found[0]()), (found[1], found[1]()), (found[0], again))]  # fmt: skip

    for outs in run_threads(2, case):
        for out in outs:
            torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(RuntimeError, match="is not initialised"):
        hp.parallel.parallelize(model, given, tmp_path / "plan.json")
