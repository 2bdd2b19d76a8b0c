"""Networks without a graph, split in every way: all of it as in one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor

import hag_plugin as hp
from hag_plugin.parallel.model.network import Network, followed
from hag_plugin.parallel.model.trace import copied
from hag_plugin.parallel.search.network import NetworkPlan
from hag_plugin.parallel.strategies.axes import Split, possible, rule_of

from ..networks import any_plan, plan_of
from ..run_ranks import run_processes, run_threads

if not (Path(__file__).parents[3] / "examples" / "reproduce" / "small_networks.py").is_file():
    pytest.skip("the examples are not here", allow_module_level=True)

from examples.reproduce.small_networks import NETWORKS, network

PHASES = ("forward", "backward", "update")


def train(model: nn.Module, inputs: Any, steps: int = 3) -> Any:
    """What one process, or one of many ranks, has after some steps of training, then in eval."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses, outs, gradients = [], [], {}
    for step in range(steps):
        optimizer.zero_grad()
        loss, out = model(*inputs)
        (loss + 0.1 * out.square().mean()).backward()  # of both outputs
        if not step:
            gradients = {n: whole(p.grad).clone() for n, p in model.named_parameters()}
        optimizer.step()
        losses.append(loss.detach().clone())
        outs.append(out.detach().clone())
    model.eval()
    with torch.no_grad():
        outs += [t.clone() for t in model(*inputs)]
    return losses, outs, gradients, {n: whole(t).clone() for n, t in model.state_dict().items()}


def whole(tensor: Any) -> torch.Tensor:
    """A DTensor's value, gathered."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def together(rank: int, model: nn.Module, inputs: Any, plans: list[NetworkPlan]) -> list[Any]:
    """What a rank has with each plan, and the bytes of a step."""
    found = []
    for plan in plans:
        mine = hp.parallel.parallelize(model, inputs, plan)
        mine.parallel.sent.reset()
        loss, out = mine(*inputs)
        (loss + out.sum()).backward()
        sent = {phase: mine.parallel.sent[phase] for phase in PHASES}
        mine.zero_grad()
        with torch.no_grad():  # statistics that are kept start anew
            for name, buffer in model.named_buffers():
                mine.get_buffer(name).copy_(buffer)
        found.append((train(mine, inputs), sent))
    return found


def check(name: str, size: int, plans: list[NetworkPlan]) -> None:
    """All ranks against one process, and their bytes against the plans'."""
    model, inputs = network(name)
    expected = train(copied(model), inputs)
    found = run_threads(size, lambda rank: together(rank, model, inputs, plans))
    compare(found, expected, plans)


def compare(found: list[list[Any]], expected: Any, plans: list[NetworkPlan]) -> None:
    """What all ranks have against what one process has."""
    for rank, results in enumerate(found):
        for plan, (trained, sent) in zip(plans, results, strict=True):
            assert sent == {phase: plan.sent[phase][rank] for phase in PHASES}, plan
            torch.testing.assert_close(trained, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NETWORKS)
def test_training_with_any_plan_is_that_of_one_process(name: str) -> None:
    found = followed(*network(name))
    check(name, 4, [any_plan(found, 4, 0)])


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [2, 3, 4])
def test_training_with_many_plans(name: str, size: int) -> None:
    found = followed(*network(name))
    check(name, size, [any_plan(found, size, seed) for seed in range(1, 4)])


def along(found: Network, size: int, axis: str) -> NetworkPlan:
    """All operations that have an axis split along it, with parts on all ranks."""
    splits = {}
    for op in found.operations:
        sizes = {a.name: a.size for a in rule_of(op).axes}
        parts = max(possible(sizes.get(axis, 0), size), default=0)
        if parts:
            splits[op.name] = Split(((axis, parts),), tuple(range(parts)))
    return plan_of(found, size, splits)


@pytest.mark.mostly_slow("4-NMT")
@pytest.mark.parametrize(
    ("size", "name"), [*((2, name) for name in NETWORKS), (4, "ResNet"), (4, "NMT")]
)
def test_processes_train_with_the_plan_that_the_planner_finds(size: int, name: str) -> None:
    """As is cheapest, by samples and by channels; processes and gloo."""
    model, inputs = network(name)
    found = followed(model, inputs)
    plans = [hp.parallel.plan(model, inputs, "a100x8", world_size=size)]
    plans += [along(found, size, axis) for axis in ("sample", "channel")]
    ranks = run_processes(size, from_name, name, plans)
    compare(ranks, train(copied(model), inputs), plans)


def from_name(rank: int, name: str, plans: list[NetworkPlan]) -> Any:
    return together(rank, *network(name), plans)


class Dropped(nn.Module):
    """Dropout of whole rows and in the middle; the output's zeros tell the masks."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(4, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = nn.functional.dropout(self.dense(x), 0.5, self.training)
        return nn.functional.dropout(h.view(6, 2, 4), 0.25, self.training)


def test_masks_of_dropout_do_not_depend_on_the_plan() -> None:
    torch.manual_seed(0)
    model, x = Dropped(), torch.randn(6, 4)
    found = followed(model, (x,))
    plans = [plan_of(found, 4, {})] + [any_plan(found, 4, seed) for seed in range(4)]

    def case(rank: int) -> list[torch.Tensor]:
        outs = []
        for plan in plans:
            mine = hp.parallel.parallelize(model, x, plan)
            outs += [mine(x).detach(), mine(x).detach(), mine.eval()(x).detach()]
        return outs

    for outs in run_threads(4, case):
        assert not torch.equal(outs[0] == 0, outs[1] == 0)  # another step
        share = (outs[0] == 0).double().mean()
        assert 0.4 < share < 0.9  # 0.625
        for i, out in enumerate(outs):
            torch.testing.assert_close(out, outs[i % 3])
        torch.testing.assert_close(outs[2], model.eval()(x).detach())


@pytest.mark.parametrize("name", ["ResNet", "RNNLM"])
def test_batches_of_other_sizes_are_taken_whole_or_split(name: str) -> None:
    model, (x, y) = network(name)
    plan = along(followed(model, (x, y)), 4, "sample")
    batches = [(x[:n], y[:n]) for n in (6, 5, 2, 6)]

    def steps(model: nn.Module) -> Any:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        losses = []
        for batch in batches:
            optimizer.zero_grad()
            loss = model(*batch)[0]
            loss.backward()
            optimizer.step()
            losses.append(loss.detach().clone())
        return losses, {n: whole(t).clone() for n, t in model.state_dict().items()}

    expected = steps(copied(model))
    for found in run_threads(4, lambda rank: steps(hp.parallel.parallelize(model, (x, y), plan))):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


class Tied(nn.Module):
    """A weight that two layers share, one that is fixed, one that nothing uses, values cut off."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.dense = nn.Embedding(7, 5), nn.Linear(5, 7)
        self.dense.weight = self.embedding.weight
        self.fixed, self.unused = nn.Linear(5, 5).requires_grad_(False), nn.Linear(3, 3)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = self.fixed(self.embedding(x))
        out = self.dense(h.tanh() * h.detach())
        return nn.functional.cross_entropy(out, y), out


def test_weights_that_are_shared_fixed_or_unused() -> None:
    torch.manual_seed(0)
    model, inputs = Tied().double(), (torch.arange(6), torch.arange(6) % 5)
    found = followed(model, inputs)
    plans = [any_plan(found, 4, seed) for seed in range(4)]

    def steps(model: nn.Module) -> Any:
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model(*inputs)[0].backward()
            optimizer.step()
        graded = sorted(n for n, p in model.named_parameters() if p.grad is not None)
        return graded, {n: whole(t).clone() for n, t in model.state_dict().items()}

    expected = steps(copied(model))
    assert expected[0] == ["dense.bias", "embedding.weight"]

    def case(rank: int) -> list[Any]:
        return [steps(hp.parallel.parallelize(model, inputs, plan)) for plan in plans]

    for results in run_threads(4, case):
        for graded, state in results:
            assert graded == expected[0]
            torch.testing.assert_close(state, dict(expected[1]), rtol=1e-9, atol=1e-9)


class Classified(Dropped):
    """With a loss of a trained output."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).square().mean()


def resume(rank: int, folder: Path) -> list[float]:
    """Losses after a checkpoint: going on, and loaded under another plan."""
    torch.manual_seed(0)
    x = torch.linspace(-1, 1, 24).view(6, 4)
    losses = []
    for axis in ("sample", "channel"):
        model = Classified()
        plan = along(followed(model, (x,)), 2, axis)
        mine = hp.parallel.parallelize(model, x, plan)
        optimizer = torch.optim.Adam(mine.parameters(), lr=0.1)
        if losses:
            hp.parallel.load_checkpoint(folder / "saved", mine, optimizer)
        for step in range(1 if losses else 3):
            if step == 2:
                hp.parallel.save_checkpoint(folder / "saved", mine, optimizer)
            optimizer.zero_grad()
            loss = mine(x)
            loss.backward()
            optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_checkpoints_are_taken_up_under_another_plan(tmp_path: Path) -> None:
    for on, again in run_processes(2, resume, tmp_path):
        assert on == pytest.approx(again, rel=1e-6)


def test_the_example_prints_the_loss_of_one_process_beside_that_of_the_ranks() -> None:
    script = Path(__file__).parents[3] / "examples" / "reproduce" / "networks_execute.py"
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         str(script), "--network", "AlexNet", "--network", "RNNLM", "--plan"],
        capture_output=True, text=True, timeout=150, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    losses = [words[1:4] for words in lines if words[:1] == ["loss"]]
    alone = [words[1:4] for words in lines if words[:1] == ["alone"]]
    assert len(losses) == 2
    for mine, theirs in zip(losses, alone, strict=True):
        assert [float(x) for x in mine] == pytest.approx([float(x) for x in theirs], abs=1e-9)
    assert "lstm" in done.stdout
