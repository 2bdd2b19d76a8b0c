"""Plans that live on: made, edited, saved, loaded, priced anew, refined, and run by ranks.

Whatever was done to a plan, it is refused with an error that says where, or every rank that runs it
computes what the model computes in one process: outputs, gradients, weights after steps.
`HAG_PLUGIN_TIMES=20 pytest tests/parallel/test_states.py` goes on 20 times as long.
"""

from __future__ import annotations

import copy
import json
import pickle
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from torch import nn
from torch_geometric import nn as pyg

import hag_plugin as hp
from hag_plugin.parallel.search.planner import planned
from hag_plugin.parallel.strategies.registry import Problem, configs_of

from .equality import compare, sgd, train_alone, train_together
from .execution.test_every_strategy import cliques
from .models import CLASSES, FEATURES, RGCN
from .run_ranks import run_threads

SEEDS = st.integers(0, 2**16)
MODELS: dict[str, Any] = {
    "GCN": lambda width: pyg.GCN(FEATURES, width, 2, CLASSES, norm="batch"),
    "SAGE": lambda width: pyg.GraphSAGE(FEATURES, width, 2, CLASSES, jk="cat"),
    "GIN": lambda width: pyg.GIN(FEATURES, width, 2, CLASSES, train_eps=True),
    "GAT": lambda width: pyg.GAT(FEATURES, width, 2, CLASSES, heads=4),
    "RGCN": lambda width: RGCN(),
}
SIZES = (1, 2, 3, 4)
MACHINES = ("a100x8", "k80x4", "cpu2")
KEYS = ("strategy", "source", "target", "order", "hag")


class PlanMachine(RuleBasedStateMachine):
    """One model, one plan, and its file."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "plan.json"
        self.is_edited = False

    def teardown(self) -> None:
        self.folder.cleanup()

    @initialize(name=st.sampled_from(sorted(MODELS)), size=st.sampled_from(SIZES))
    def begin(self, name: str, size: int) -> None:
        """A model, its operations and the cheapest plan."""
        torch.manual_seed(0)
        self.name, self.data = name, cliques()
        self.model: nn.Module = MODELS[name](16).double()
        self.graph = hp.parallel.trace(self.model, self.data)
        self.machine = "a100x8"
        self.make(self.machine, size)

    @rule(machine=st.sampled_from(MACHINES), size=st.sampled_from(SIZES))
    def make(self, machine: str, size: int) -> None:
        """The cheapest plan for a machine."""
        if (machine, size) == ("k80x4", 3):  # it has groups of two
            size = 2
        size = min(size, hp.parallel.preset(machine).num_devices)
        self.machine = machine
        self.plan = hp.parallel.plan(self.model, self.data, machine, world_size=size)
        self.is_edited = False

    def space(self) -> Any:
        return hp.parallel.space_of(self.graph, self.machine, self.plan.world_size)

    @rule(data=st.data())
    def draw(self, data: st.DataObject) -> None:
        """A plan in which each operation has anything that it may have; it runs."""
        space = self.space()
        chosen = [data.draw(st.integers(0, len(c) - 1)) for c in space.configs]
        self.plan = planned(space, chosen)
        self.is_edited = False
        self.run(from_file=False, steps=1)

    # What is done to a plan -----------------------------------------------------------------------

    @rule(data=st.data())
    def edit(self, data: st.DataObject) -> None:
        """Another strategy of a layer's own, as people write it into the file."""
        document = self.plan.as_dict()
        number = data.draw(st.integers(0, len(self.graph.ops) - 1))
        problem = Problem(self.graph, self.graph.ops[number], self.plan.world_size)
        config = data.draw(st.sampled_from(list(configs_of(problem)[0])))
        words = (config.strategy, config.source, config.target, config.order, config.hag)
        entry = document["layers"][number]
        entry.update({key: str(value) for key, value in zip(KEYS, words, strict=True)})
        self.read(document)
        self.is_edited = True
        self.plan.check(self.graph, self.plan.world_size)

    @rule(data=st.data())
    def edit_wrongly(self, data: st.DataObject) -> None:
        """A value of another layer's: refused by name, or possible."""
        document = self.plan.as_dict()
        to, other = (data.draw(st.sampled_from(document["layers"])) for _ in range(2))
        key = data.draw(st.sampled_from(KEYS))
        before, to[key] = copy.deepcopy(document), other[key]
        try:
            self.read(document)
            self.plan.check(self.graph, self.plan.world_size)
            self.is_edited = True
        except ValueError as e:
            if repr(to["name"]) not in str(e):
                raise
            to[key] = next(k for k in before["layers"] if k["name"] == to["name"])[key]
            self.read(document)

    def read(self, document: Any) -> None:
        self.path.write_text(json.dumps(document))
        self.plan = hp.parallel.Plan.load(self.path)

    @rule()
    def save_and_load(self) -> None:
        self.plan.save(self.path)
        loaded = hp.parallel.Plan.load(self.path)
        assert loaded == self.plan
        assert str(loaded) == str(self.plan)
        self.plan = loaded

    @rule()
    def copies(self) -> None:
        for other in (copy.deepcopy(self.plan), pickle.loads(pickle.dumps(self.plan))):
            assert other == self.plan
        self.plan = other

    @rule()
    def recost(self) -> None:
        """What an edit left of the old prices goes; the choices stay."""
        priced = hp.parallel.recost(self.plan, self.graph, self.machine)
        assert priced.configs == self.plan.configs
        if not self.is_edited:
            assert priced.seconds == pytest.approx(self.plan.seconds)
        self.plan, self.is_edited = priced, False

    @rule()
    def simulate(self) -> None:
        assert hp.parallel.simulate_plan(self.plan, self.space()).makespan > 0

    @rule(seed=SEEDS)
    def refine(self, seed: int) -> None:
        budget = hp.parallel.Budget(proposals=10)
        refined = hp.parallel.refine(self.plan, self.space(), budget, seed=seed)
        assert refined.sampled <= refined.simulated
        self.plan, self.is_edited = refined.plan, False

    # What it is not for ---------------------------------------------------------------------------

    @rule(seed=SEEDS)
    def another_graph(self, seed: int) -> None:
        """The edges are another's: refused, and not looked at again."""
        generator = torch.Generator().manual_seed(seed)
        other = cliques()
        other.edge_index = torch.randint(40, other.edge_index.shape, generator=generator)
        graph = hp.parallel.trace(self.model, other)
        with pytest.raises(ValueError, match="plan again for this graph"):
            self.plan.check(graph)

    @precondition(lambda self: self.name != "RGCN")
    @rule()
    def another_model(self) -> None:
        graph = hp.parallel.trace(MODELS[self.name](8).double(), self.data)
        with pytest.raises(ValueError, match=r"another model|is for model"):
            self.plan.check(graph)

    @rule(size=st.sampled_from(SIZES))
    def another_size(self, size: int) -> None:
        if size != self.plan.world_size:
            with pytest.raises(ValueError, match=f"there are {size}"):
                self.plan.check(self.graph, size)

    @invariant()
    def is_whole(self) -> None:
        if hasattr(self, "plan"):
            self.plan.check(self.graph, self.plan.world_size)
            assert len(str(self.plan).splitlines()) > 3
            assert self.plan.memory.total > 0

    # Runs -----------------------------------------------------------------------------------------

    @rule(from_file=st.booleans(), steps=st.integers(1, 2))
    def run(self, from_file: bool, steps: int) -> None:
        """On so many ranks of a simulated group, for some steps of training."""
        expected = train_alone(self.model, self.data, sgd, steps=steps)
        self.plan.save(self.path)
        plan: Any = self.path if from_file else self.plan
        found = run_threads(
            self.plan.world_size,
            lambda rank: train_together(self.model, self.data, plan, sgd, steps=steps),
        )
        compare(found, expected, None, 1e-9)


@pytest.mark.slow
def test_plans_live_on(bounded: Any) -> None:
    run_state_machine_as_test(PlanMachine, settings=bounded(12, 12))
