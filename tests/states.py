"""Models that live on: accelerated, copied, trained, hooked, and compared after every step.

A machine holds two models that are the same, one of them accelerated now and then, and graphs that
both are called with. Whatever is done to the one model is done to the other; what a call gives, and
every gradient, must be the same. The frameworks' own part is how graphs are made and changed. Each
kind of model has runs of its own: drawn among many, most kinds come seldom.

`HAG_PLUGIN_TIMES=20 pytest tests/pyg/test_states.py` goes on 20 times as long.
"""

from __future__ import annotations

import copy
import io
import pickle
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import hag_plugin as hp

from .equality import assert_same, with_gradients

BOUNDS = {torch.float64: 1e-9, torch.float32: 1e-4}
SEEDS = st.integers(0, 2**16)
WIDTH = 4  # of features


# What users hang on layers; of the module's top level, for pickles.


def grow(module: nn.Module, args: Any, output: Any) -> Any:
    """A forward hook that changes what comes out."""
    return output * 1.5 if isinstance(output, Tensor) else None


def look(module: nn.Module, args: Any) -> None:
    """A hook before the forward that only looks."""


def damp(module: nn.Module, grad_input: Any, grad_output: Any) -> Any:
    """A backward hook that changes the gradients."""
    return tuple(g * 0.5 if g is not None and g.is_floating_point() else g for g in grad_input)


HOOKS: dict[str, tuple[Callable[..., Any], str]] = {
    "forward": (grow, "register_forward_hook"),
    "before": (look, "register_forward_pre_hook"),
    "backward": (damp, "register_full_backward_hook"),
}


def unhook(model: nn.Module) -> None:
    """Removes the user's hooks, and no others: a copy has them, but no handles."""
    mine = [hook for hook, _ in HOOKS.values()]
    for part in model.modules():
        for hooks in (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks):
            for key in [key for key, hook in hooks.items() if hook in mine]:
                del hooks[key]


def own_hooks(model: nn.Module) -> list[Any]:
    """The hooks of a model that are not the user's."""
    mine = [hook for hook, _ in HOOKS.values()]
    return [
        hook
        for part in model.modules()
        for hooks in (part._forward_hooks, part._forward_pre_hooks)
        for hook in hooks.values()
        if hook not in mine
    ]


class Place:
    """A graph with all that a model is called with, drawn by a seed.

    Args:
        takes: what the model takes besides features and a graph; a key of `values`, or else
            nothing.
        seed: of all that is drawn.
    """

    x: Tensor

    def __init__(self, takes: str, seed: int) -> None:
        self.takes = takes
        self.random = np.random.default_rng(seed)
        self.nodes = int(self.random.integers(5, 24))

    def cliques(self, below: int) -> Tensor:
        """Edges of cliques of all nodes, loops among them, and some of nodes below a number."""
        group = self.random.integers(0, 3, self.nodes)
        inside = np.stack(np.nonzero(group[:, None] == group))
        others = self.random.integers(0, below, (2, self.nodes))
        edges = np.concatenate([inside, others], 1)
        edges = edges[:, self.random.permutation(edges.shape[1])]
        return torch.from_numpy(np.ascontiguousarray(edges))

    def floats(self, rows: int, dtype: torch.dtype) -> Tensor:
        """In torch's memory or in NumPy's, which others may write to."""
        made = torch.from_numpy(self.random.standard_normal((rows, WIDTH))).to(dtype)
        return made.clone() if self.random.random() < 0.5 else made

    def values(self) -> dict[str, Tensor]:
        """What there is for each edge, by name."""
        raise NotImplementedError

    def more(self) -> list[Tensor]:
        """What the model takes of it."""
        known = self.values()
        return [known[self.takes]] if self.takes in known else []

    def arguments(self) -> tuple[list[Any], list[Any]]:
        """Those of the accelerated model and those of the stock one."""
        raise NotImplementedError

    def leaves(self) -> list[Tensor]:
        """What gradients go to, besides the weights."""
        return [t for t in (self.x, *self.more()) if t.requires_grad]

    def to(self, dtype: torch.dtype) -> None:
        """Moves what is of floats."""
        raise NotImplementedError


class ModelMachine(RuleBasedStateMachine):
    """See above. `MODELS` makes a model of each kind; `name` is that of one."""

    MODELS: dict[str, Callable[[], nn.Module]]
    LAYER: type[nn.Module]  # of the framework's layers

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.dtype = torch.float64
        self.places: list[Any] = []
        self.last: Any = None  # the place that was drawn last
        self.calls = 0

    def new_place(self, seed: int) -> Any:
        """A graph that fits the model."""
        raise NotImplementedError

    @initialize(data=st.data(), seed=SEEDS)
    def begin(self, data: st.DataObject, seed: int) -> None:
        """Two models, and graphs for them."""
        self.often = data.draw(st.integers(0, 3)) > 0  # otherwise graphs seldom come back
        torch.manual_seed(seed)
        self.stock = self.MODELS[self.name]().to(self.dtype)
        self.ours = copy.deepcopy(self.stock)
        self.places = [self.new_place(seed), self.new_place(seed + 1)]
        hp.accelerate(self.ours)
        self.accelerated = True

    def teardown(self) -> None:
        torch.set_num_threads(1)

    def draw_place(self, data: st.DataObject) -> Any:
        self.last = self.places[data.draw(st.integers(0, len(self.places) - 1))]
        return self.last

    def arguments(self, place: Any) -> tuple[list[Any], list[Any]]:
        """Of both models; a restored one takes what stock takes."""
        mine, theirs = place.arguments()
        return mine if self.accelerated else theirs, theirs

    def for_a_thread(self, place: Any) -> tuple[list[Any], list[Any]]:
        """The same, for one of several threads."""
        return self.arguments(place)

    # Calls --------------------------------------------------------------------------------------

    def run(self, model: nn.Module, args: list[Any], leaves: list[Tensor], how: str) -> list[Any]:
        torch.manual_seed(self.calls)
        parameters = [p for p in model.parameters() if p.requires_grad]
        for leaf in [*leaves, *parameters]:
            leaf.grad = None
        if how == "no_grad":
            with torch.no_grad():
                return [model(*args)]
        if how == "inference":
            with torch.inference_mode():
                return [model(*args).clone()]
        if how == "checkpoint":
            y = checkpoint(model, *args, use_reentrant=False)
        else:
            y = model(*args)
        if how == "twice":
            (y * y).sum().backward(retain_graph=True)
        return with_gradients(y, [*leaves, *parameters])

    def compare(self, place: Any, how: str) -> None:
        self.calls += 1
        mine, theirs = self.arguments(place)
        expected = self.run(self.stock, theirs, place.leaves(), how)
        found = self.run(self.ours, mine, place.leaves(), how)
        assert_same(found, expected, BOUNDS[self.dtype])
        assert_same([*self.ours.buffers()], [*self.stock.buffers()], BOUNDS[self.dtype])

    def comes_back(self, place: Any) -> None:
        """Has what is known of a place be in use: what changes then must be seen."""
        for _ in range(3):
            self.compare(place, "backward")

    @invariant()
    def is_the_same(self) -> None:
        """After every step, where that was last."""
        if self.last is not None and self.often:
            self.compare(self.last, "backward")

    HOW = st.sampled_from(["backward", "backward", "no_grad", "inference", "checkpoint", "twice"])

    @rule(data=st.data(), how=HOW, times=st.integers(1, 3))
    def call(self, data: st.DataObject, how: str, times: int) -> None:
        """Both on the same graph; a few times, so that it comes back."""
        place = self.draw_place(data)
        for _ in range(times):
            self.compare(place, how)

    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        """A step of training."""
        place = self.draw_place(data)
        self.compare(place, "backward")
        for model in (self.stock, self.ours):
            with torch.no_grad():
                for p in model.parameters():
                    if p.grad is not None:
                        p.add_(p.grad.clamp(-1, 1), alpha=-0.01)
        # Rounding is not to add up: it is compared call by call.
        self.ours.load_state_dict(self.stock.state_dict())

    @rule(data=st.data())
    def threads_at_once(self, data: st.DataObject) -> None:
        """Several threads call the same model."""
        was = self.stock.training
        self.stock.eval()
        self.ours.eval()
        pairs = [self.for_a_thread(self.draw_place(data)) for _ in range(3)]
        found: list[Any] = [None] * len(pairs)

        def work(i: int) -> None:
            try:
                with torch.no_grad():
                    for _ in range(2):
                        found[i] = self.ours(*pairs[i][0])
            except BaseException as e:
                found[i] = e

        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(pairs))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for each, (_, theirs) in zip(found, pairs, strict=True):
            if isinstance(each, BaseException):
                raise each
            with torch.no_grad():
                assert_same([each], [self.stock(*theirs)], BOUNDS[self.dtype])
        self.stock.train(was)
        self.ours.train(was)

    # What is done to a model --------------------------------------------------------------------

    @rule()
    def accelerate(self) -> None:
        assert hp.accelerate(self.ours) is self.ours
        self.accelerated = True

    @rule()
    def restore(self) -> None:
        """Nothing is left of it."""
        assert hp.restore(self.ours) is self.ours
        self.accelerated = False
        parts = zip(self.ours.modules(), self.stock.modules(), strict=True)
        assert all(type(one) is type(other) for one, other in parts)
        assert own_hooks(self.ours) == []

    @rule()
    def forget(self) -> None:
        hp.forget(self.ours)

    @rule()
    def deepcopy(self) -> None:
        self.ours = copy.deepcopy(self.ours)

    @rule()
    def pickle(self) -> None:
        self.ours = pickle.loads(pickle.dumps(self.ours))

    @rule()
    def torch_save(self) -> None:
        file = io.BytesIO()
        torch.save(self.ours, file)
        self.ours = torch.load(io.BytesIO(file.getvalue()), weights_only=False)

    @rule()
    def load_state_dict(self) -> None:
        assert self.ours.state_dict().keys() == self.stock.state_dict().keys()
        self.ours.load_state_dict(copy.deepcopy(self.stock.state_dict()))

    @rule(training=st.booleans())
    def train(self, training: bool) -> None:
        self.stock.train(training)
        self.ours.train(training)

    @rule(dtype=st.sampled_from(sorted(BOUNDS, key=str)))
    def other_dtype(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.stock.to(dtype)
        self.ours.to(dtype)
        # What was rounded in one of them only
        self.ours.load_state_dict(self.stock.state_dict())
        for place in self.places:
            place.to(dtype)

    @rule(count=st.integers(1, 3))
    def threads(self, count: int) -> None:
        torch.set_num_threads(count)

    @rule()
    def explain(self) -> None:
        """Says something of each layer, and changes nothing."""
        layers = [m for m in self.stock.modules() if isinstance(m, self.LAYER)]
        found = hp.explain(self.ours)
        assert len(found.rows) >= len(layers)
        assert str(found)

    @rule(kind=st.sampled_from(sorted(HOOKS)), data=st.data())
    def hook(self, kind: str, data: st.DataObject) -> None:
        """A hook of the user's on a part of both."""
        hook, register = HOOKS[kind]
        count = len(list(self.stock.modules()))
        number = data.draw(st.integers(0, count - 1))
        place = self.draw_place(data)
        self.comes_back(place)
        for model in (self.stock, self.ours):
            getattr(list(model.modules())[number], register)(hook)
        self.compare(place, "backward")

    @rule()
    def unhook(self) -> None:
        for model in (self.stock, self.ours):
            unhook(model)

    # What is done to graphs ---------------------------------------------------------------------

    @rule(data=st.data(), seed=SEEDS)
    def another_graph(self, data: st.DataObject, seed: int) -> None:
        """In place of one that goes, whose memory may be had again."""
        number = data.draw(st.integers(0, 2))
        if number < len(self.places):
            self.places[number] = self.last = None
            self.places[number] = self.new_place(seed)
        else:
            self.places.append(self.new_place(seed))

    @rule(data=st.data(), row=st.integers(0, 4), how=st.sampled_from(["mul_", "row", "copy_"]))
    def features_in_place(self, data: st.DataObject, row: int, how: str) -> None:
        place = self.draw_place(data)
        self.comes_back(place)
        x = place.x
        with torch.no_grad():
            if how == "mul_":
                x.mul_(-0.75)
            elif how == "row":
                x[row] += 1
            else:
                x.copy_(x.flip(0))
        self.compare(place, "backward")

    @rule(data=st.data(), wanted=st.booleans())
    def gradients_of_features(self, data: st.DataObject, wanted: bool) -> None:
        self.draw_place(data).x.requires_grad_(wanted)

    @precondition(lambda self: len(self.places) > 1)
    @rule()
    def same_features(self) -> None:
        """Two graphs of as many nodes may share their features."""
        first, second = self.places[:2]
        if first.x.shape == second.x.shape:
            second.x = first.x
