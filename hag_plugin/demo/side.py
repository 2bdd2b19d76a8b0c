"""One side of the demo: a 2-layer GCN classifier, trained in a process of its own.

Each side has its own process so that its peak memory is its own. `demo.compare` starts both and
asks them for one epoch in turn. What differs between PyG and DGL is in `demo.pyg` and `demo.dgl`.
"""

from __future__ import annotations

import contextlib
import importlib
import signal
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, fields
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from hag_plugin.data.graph_data import GraphData
from hag_plugin.demo import peak_memory
from hag_plugin.hag import constants
from hag_plugin.hag.candidates import SHARED, Choice
from hag_plugin.hag.hag import HAG
from hag_plugin.hag.hag import batch as side_by_side
from hag_plugin.hag.program import SelfLoops
from hag_plugin.hag.stats import Stats

TEST_SHARE = 0.2
# name: how the demo calls it, and what makes its sides
FRAMEWORKS = {
    "pyg": ("PyG", "hag_plugin.demo.pyg"),
    "dgl": ("DGL", "hag_plugin.demo.dgl"),
}
COUNTED = tuple(f.name for f in fields(Stats) if f.name not in ("levels", "gpu", "choice"))


@dataclass(frozen=True)
class Settings:
    """What both sides share.

    Attributes:
        hidden: width of both layers.
        epochs: passes over the training set.
        batch_size: graphs a batch; a single graph is always trained as a whole.
        seed: of the weights, the order of batches and a random split.
        threads: that torch may use in each process.
        method: how the HAG is searched: "auto", "greedy" or "none".
        learning_rate: of Adam.
        framework: of `FRAMEWORKS`.
    """

    hidden: int = 64
    epochs: int = 15
    batch_size: int = 32
    seed: int = 0
    threads: int = 1
    method: str = "auto"
    learning_rate: float = 0.01
    framework: str = "pyg"


class Side(ABC):
    """Stock or accelerated: its data, its model and what is measured."""

    def __init__(self, data: GraphData, settings: Settings, accelerated: bool) -> None:
        torch.set_num_threads(settings.threads)
        self.settings = settings
        self.accelerated = accelerated
        self.by_graph = data.labels_graphs
        torch.manual_seed(settings.seed)
        assert data.x is not None
        self.model = self.classifier(data.x.shape[1], settings.hidden, data.num_classes)
        self.graphs = self.as_graphs(data)
        self.test = _split(data, settings.seed)
        self.warm_up()
        self.memory_before = peak_memory.reset()
        self.optimizer = torch.optim.Adam(
            self.model.parameters(),
            settings.learning_rate,
            weight_decay=0.0 if self.by_graph else 5e-4,
        )

    # What a framework has of its own ------------------------------------------------------------

    @abstractmethod
    def classifier(self, features: int, hidden: int, classes: int) -> nn.Module:
        """Two GCN layers, a mean over each graph where graphs are labelled, a linear layer."""

    @abstractmethod
    def as_graphs(self, data: GraphData) -> list[Any]:
        """A graph for each label; one, with masks, where nodes are labelled."""

    @abstractmethod
    def warm_up(self) -> None:
        """Loads the code of a forward and backward pass, which would count as memory otherwise."""

    @abstractmethod
    def search(self) -> None:
        """Gives the graphs their HAGs and accelerates the model."""

    @abstractmethod
    def hags(self) -> tuple[list[HAG], SelfLoops]:
        """The HAGs of the graphs, and the mode in which layers run them."""

    @abstractmethod
    def loader(self, graphs: list[Any], order: torch.Generator | None) -> Iterable[Any]:
        """Batches of the graphs, in random order if one is given."""

    @abstractmethod
    def merge(self, batch: Any) -> None:
        """Does now what a batch would do at its first use."""

    @abstractmethod
    def scores(self, model: nn.Module, batch: Any, dtype: torch.dtype) -> Tensor:
        """What the model says of each graph, or of each node, with features in `dtype`."""

    @abstractmethod
    def labels(self, batch: Any) -> Tensor:
        """int64, of each graph or of each node."""

    @abstractmethod
    def mask(self, batch: Any, name: str) -> Tensor:
        """ "train_mask" or "test_mask" of the nodes."""

    @abstractmethod
    def choice(self, batch: Any) -> Choice:
        """Which program the layers run on an accelerated batch."""

    # What both have -----------------------------------------------------------------------------

    def prepare(self) -> dict[str, Any]:
        """Searches the HAGs (accelerated) and makes the loaders; says what the search took."""
        found: dict[str, Any] = {}
        if self.accelerated:
            constants.in_force()  # once a machine: no part of a search
            start = time.perf_counter()
            self.search()
            found["search_seconds"] = time.perf_counter() - start
            hags, mode = self.hags()
            stats = (hags[0] if len(hags) == 1 else side_by_side(hags)).stats(mode)
            found["stats"] = {k: getattr(stats, k) for k in COUNTED}
        self.train_loader: Iterable[Any] = self.graphs
        self.test_loader: Iterable[Any] = self.graphs
        if self.by_graph:
            order = torch.Generator()
            order.manual_seed(self.settings.seed)
            test = self.test.tolist()
            train = [g for g, held_out in zip(self.graphs, test, strict=True) if not held_out]
            rest = [g for g, held_out in zip(self.graphs, test, strict=True) if held_out]
            self.train_loader = self.loader(train, order)
            self.test_loader = self.loader(rest, None)
        self.initial = self.weights()
        return found

    def epoch(self) -> tuple[float, float, float]:
        """Trains one epoch.

        Returns:
            Its wall time in seconds; how much of that went into batching, the merging of HAGs
            included; its mean loss.
        """
        self.model.train()
        start, batching, total, count = time.perf_counter(), 0.0, 0.0, 0
        ready = start
        for batch in self.train_loader:
            self.merge(batch)
            batching += time.perf_counter() - ready
            scores, label = self.scores(self.model, batch, torch.float32), self.labels(batch)
            if not self.by_graph:
                chosen = self.mask(batch, "train_mask")
                scores, label = scores[chosen], label[chosen]
            loss = cross_entropy(scores, label)
            self.optimizer.zero_grad()
            torch.autograd.backward(loss)
            self.optimizer.step()
            total += loss.item() * len(label)
            count += len(label)
            ready = time.perf_counter()
        return time.perf_counter() - start, batching, total / max(count, 1)

    def finish(self) -> dict[str, Any]:
        """Peak memory of search and training in bytes, accuracy on the test set, what ran."""
        peak = peak_memory.peak()
        memory = None if peak is None or self.memory_before is None else peak - self.memory_before
        right = count = 0
        scores = torch.from_numpy(self.outputs(torch.float32))
        for batch in self.test_loader:
            label = self.labels(batch)
            label = label if self.by_graph else label[self.mask(batch, "test_mask")]
            right += int((scores[count : count + len(label)].argmax(1) == label).sum())
            count += len(label)
        share = None
        if self.accelerated:
            ran = [self.choice(batch).name == SHARED for batch in self.train_loader]
            share = sum(ran) / max(len(ran), 1)
        return {"peak_bytes": memory, "accuracy": right / max(count, 1), "hag_share": share}

    @torch.no_grad()
    def outputs(
        self, dtype: torch.dtype, weights: dict[str, np.ndarray] | str | None = None
    ) -> np.ndarray:
        """Scores of the test set in `dtype`, `[n, C]`; with other weights if they are given."""
        model = deepcopy(self.model).to(dtype).eval()
        if weights is not None:
            kept = self.initial if isinstance(weights, str) else weights
            model.load_state_dict({k: torch.from_numpy(v) for k, v in kept.items()})
        scores = []
        for batch in self.test_loader:
            out = self.scores(model, batch, dtype)
            scores.append(out if self.by_graph else out[self.mask(batch, "test_mask")])
        return torch.cat(scores).numpy()

    def weights(self) -> dict[str, np.ndarray]:
        """The model's parameters by name."""
        return {k: v.detach().numpy().copy() for k, v in self.model.state_dict().items()}


def split_edges(data: GraphData) -> list[Tensor]:
    """The edges of each graph of a batch, `[2, E]`, its first node being 0."""
    assert data.graph_ptr is not None
    graph = torch.searchsorted(data.graph_ptr, data.edge_index[1], right=True) - 1
    order = torch.sort(graph, stable=True).indices
    counts = torch.bincount(graph, minlength=data.num_graphs)
    edges = torch.split(data.edge_index[:, order], counts.tolist(), 1)
    return [(e - first).contiguous() for e, first in zip(edges, data.graph_ptr, strict=False)]


def _split(data: GraphData, seed: int) -> Tensor:
    """Which graphs are held out for the test, bool `[G]`; for nodes the masks say."""
    held_out = torch.zeros(data.num_graphs, dtype=torch.bool)
    if data.labels_graphs:
        order = np.random.default_rng(seed).permutation(data.num_graphs)
        held_out[torch.from_numpy(order[: max(1, round(TEST_SHARE * data.num_graphs))])] = True
    return held_out


# The process --------------------------------------------------------------------------------------


def serve(
    connection: Connection, arrays: dict[str, Any], settings: Settings, accelerated: bool
) -> None:
    """Runs a `Side` on request: takes `(method, arguments)`, answers `(ok, result)`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where the parent could not block it
    tqdm.set_lock(threading.RLock())  # its own would be a semaphore, leaked if we are ended
    try:
        made_by = importlib.import_module(FRAMEWORKS[settings.framework][1])
        side: Side = made_by.side(from_arrays(arrays), settings, accelerated)
        connection.send((True, None))
        while True:
            method, arguments = connection.recv()
            connection.send((True, getattr(side, method)(*arguments)))
    except (EOFError, BrokenPipeError, ConnectionResetError):  # who asked is gone
        return
    except Exception as e:
        with contextlib.suppress(OSError):
            connection.send((False, (f"{type(e).__name__}: {e}", traceback.format_exc())))


def to_arrays(data: GraphData) -> dict[str, Any]:
    """The fields of a graph with NumPy arrays for tensors, to be sent to another process."""
    values = {f.name: getattr(data, f.name) for f in fields(data)}
    return {k: v.numpy() if isinstance(v, Tensor) else v for k, v in values.items()}


def from_arrays(arrays: dict[str, Any]) -> GraphData:
    """The graph that `to_arrays` took apart."""
    values: dict[str, Any] = {
        k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in arrays.items()
    }
    return GraphData(**values)
