"""Checkpoints: whole or absent, and for every world size, plan and the plain model."""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch_geometric import nn as pyg
from torch_geometric.data import Data

import hag_plugin as hp
from hag_plugin.parallel.execution.checkpoint import METADATA, load_checkpoint, save_checkpoint
from hag_plugin.parallel.model.trace import trace
from hag_plugin.parallel.search.plan import Plan
from hag_plugin.parallel.search.planner import planned

from ..equality import space_with, whole
from ..run_ranks import launch, run_processes, run_threads
from .test_parallelize import CLASSES, FEATURES, data

CLOSE = {"rtol": 1e-10, "atol": 1e-10}
# A bias before a batch normalisation has no gradient but rounding: Adam must not scale that up.
ADAM = {"lr": 0.01, "eps": 1e-3}
PLANS = {
    "one": lambda op, c: True,
    "pair": lambda op, c: (
        op.kind != "convolution" or (op.name == "convs.0") == (c.strategy == "column-split weights")
    ),
    "rows": lambda op, c: op.kind != "convolution" or c.strategy == "rows, halo",
    "grid": lambda op, c: op.kind != "convolution" or c.strategy == "2-D grid",
}


def network() -> nn.Module:
    torch.manual_seed(1)
    return pyg.GCN(FEATURES, 16, 2, CLASSES, norm="batch").double()


def plan_of(model: nn.Module, graph: Data, size: int, kind: str) -> Plan:
    space = space_with(trace(model, graph, hag=False), size, PLANS[kind])
    return planned(space, list(space.cheapest().configs))


def alone(steps: int) -> Any:
    """The model and its optimizer after some steps in one process."""
    model, graph = network(), data()
    optimizer = torch.optim.Adam(model.parameters(), **ADAM)
    for _ in range(steps):
        optimizer.zero_grad()
        out = model(graph.x, graph.edge_index)
        F.cross_entropy(out[graph.train_mask], graph.y[graph.train_mask]).backward()
        optimizer.step()
    return model, optimizer


def train(model: Any, optimizer: torch.optim.Optimizer, steps: int) -> None:
    local = model.parallel.data
    for _ in range(steps):
        optimizer.zero_grad()
        out = model()[local.train_mask]
        losses = F.cross_entropy(out, local.y[local.train_mask], reduction="none")
        model.parallel.mean(losses).backward()
        optimizer.step()


def start(kind: str, seed: int = 1) -> Any:
    import torch.distributed as dist

    model, graph = network(), data()
    plan = plan_of(model, graph, dist.get_world_size(), kind)
    if seed != 1:
        for p in model.parameters():
            nn.init.ones_(p)
    model = hp.parallel.parallelize(model, graph, plan)
    return model, torch.optim.Adam(model.parameters(), **ADAM)


def save(rank: int, folder: str) -> None:
    for kind in ("pair", "rows"):
        model, optimizer = start(kind)
        train(model, optimizer, 2)
        for _ in range(2):  # the second takes the place of the first
            save_checkpoint(Path(folder) / kind, model, optimizer)


def load(rank: int, folder: str, kinds: list[str]) -> list[Any]:
    states = []
    for saved in ("pair", "rows"):
        for kind in kinds:
            model, optimizer = start(kind, seed=2)
            load_checkpoint(Path(folder) / saved, model, optimizer)
            assert model.parallel.step == 2
            train(model, optimizer, 1)
            states.append({n: whole(t) for n, t in model.state_dict().items()})
    return states


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With checkpoints of 2 ranks after 2 steps."""
    found = tmp_path_factory.mktemp("checkpoints")
    run_processes(2, save, str(found))
    return found


def test_only_whole_checkpoints_are_there(folder: Path) -> None:
    assert sorted(p.name for p in folder.iterdir()) == ["pair", "rows"]


def test_checkpoints_name_nothing_of_the_package(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) >= 4
    assert not [path for path in files if b"hag_plugin" in path.read_bytes()]


@pytest.mark.parametrize(
    ("size", "kinds"), [(1, ["one"]), (2, ["rows", "pair"]), (4, ["pair", "grid"])]
)
def test_training_goes_on_with_other_ranks(folder: Path, size: int, kinds: list[str]) -> None:
    expected = dict(alone(3)[0].state_dict())
    for states in run_processes(size, load, str(folder), kinds):
        for state in states:
            torch.testing.assert_close(state, expected, **CLOSE)


def test_training_goes_on_in_the_plain_model(folder: Path) -> None:
    model, graph = network(), data()
    for p in model.parameters():
        nn.init.ones_(p)
    optimizer = torch.optim.Adam(model.parameters(), **ADAM)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_checkpoint(folder / "pair", model, optimizer)
    torch.testing.assert_close(dict(model.state_dict()), dict(alone(2)[0].state_dict()), **CLOSE)
    out = model(graph.x, graph.edge_index)
    optimizer.zero_grad()
    F.cross_entropy(out[graph.train_mask], graph.y[graph.train_mask]).backward()
    optimizer.step()
    torch.testing.assert_close(dict(model.state_dict()), dict(alone(3)[0].state_dict()), **CLOSE)
    only = network()
    load_checkpoint(folder / "rows", only)
    torch.testing.assert_close(dict(only.state_dict()), dict(alone(2)[0].state_dict()), **CLOSE)


def test_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        load_checkpoint(tmp_path, network())
    for other in (
        pyg.GCN(FEATURES, 16, 3, CLASSES, norm="batch").double(),
        pyg.GCN(FEATURES, 24, 2, CLASSES, norm="batch").double(),
    ):
        with pytest.raises(ValueError, match="is of another model"):
            load_checkpoint(folder / "pair", other)


def fail_to_save(rank: int, folder: str) -> str:
    """One rank has no room for its shards."""
    from torch.distributed.checkpoint import FileSystemWriter

    model, optimizer = start("pair")
    path = Path(folder) / "pair"
    if rank == 1:

        def full(*args: Any) -> None:
            raise OSError("no space left")

        FileSystemWriter.write_data = full  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="could not be written") as error:
        save_checkpoint(path, model, optimizer)
    return str(error.value)


def test_a_failure_leaves_what_was_there(folder: Path) -> None:
    before = {p.name: p.read_bytes() for p in (folder / "pair").iterdir()}
    for said in run_processes(2, fail_to_save, str(folder)):
        assert "no space left" in said
    assert {p.name: p.read_bytes() for p in (folder / "pair").iterdir()} == before


def die_while_saving(rank: int, folder: str) -> None:
    from torch.distributed.checkpoint import FileSystemWriter

    model, optimizer = start("pair")
    if rank == 1:

        def dies(*args: Any) -> None:
            os._exit(7)

        FileSystemWriter.write_data = dies  # type: ignore[method-assign]
    save_checkpoint(Path(folder) / "pair", model, optimizer)


def test_a_rank_that_dies_leaves_what_was_there(folder: Path) -> None:
    before = {p.name: p.read_bytes() for p in (folder / "pair").iterdir()}
    (how, said), (other, _) = launch(2, die_while_saving, str(folder), limit=60, timeout=20)
    assert (how, other) == ("raised", "died")
    assert f"the checkpoint {folder / 'pair'} could not be written" in said
    assert {p.name: p.read_bytes() for p in (folder / "pair").iterdir()} == before
    assert not (folder / "pair.partial" / METADATA).exists()
    load_checkpoint(folder / "pair", network())


def test_a_damaged_checkpoint_is_refused(folder: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(folder / "rows", damaged)
    shards = sorted(damaged.glob("*.distcp"))
    whole_shard = shards[0].read_bytes()
    shards[0].write_bytes(whole_shard[: len(whole_shard) // 4])
    model = network()
    with pytest.raises(ValueError, match="is of another model, or damaged"):
        load_checkpoint(damaged, model)
    shards[0].unlink()
    with pytest.raises(ValueError, match="is of another model, or damaged"):
        load_checkpoint(damaged, model)


def find_on_one_rank(rank: int, folder: str) -> str:
    model, optimizer = start("rows")
    try:
        load_checkpoint(Path(folder) / ("rows" if rank == 0 else "nowhere"), model, optimizer)
    except Exception as e:
        return f"{type(e).__name__}: {e}"
    return ""


def test_a_rank_that_does_not_find_the_checkpoint_ends_all(folder: Path) -> None:
    first, second = run_threads(2, lambda rank: find_on_one_rank(rank, str(folder)), limit=30)
    assert first.startswith("RuntimeError: finding the checkpoint failed on rank 1: FileNotFound")
    assert second.startswith("FileNotFoundError: ")
