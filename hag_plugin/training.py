"""One side of the demo: a 2-layer GCN classifier, trained in a process of its own.

Each side has its own process so that its peak memory is its own. `hag_plugin.demo` starts both and
asks them for one epoch in turn.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, fields
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GCNConv, global_mean_pool
from tqdm import tqdm

from hag_plugin.graph_data import GraphData
from hag_plugin.program import Stats

TEST_SHARE = 0.2
SUMMED = tuple(f.name for f in fields(Stats) if f.name != "levels")  # a longest has no sum


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
    """

    hidden: int = 64
    epochs: int = 15
    batch_size: int = 32
    seed: int = 0
    threads: int = 1
    method: str = "auto"
    learning_rate: float = 0.01


class Classifier(nn.Module):
    """Two GCN layers, a mean over each graph where graphs are labelled, and a linear layer."""

    def __init__(self, features: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.conv1 = GCNConv(features, hidden)
        self.conv2 = GCNConv(hidden, hidden)
        self.out = nn.Linear(hidden, classes)

    def forward(self, x: Tensor, graph: Any, batch: Tensor | None, num_graphs: int) -> Tensor:
        """Scores.

        Args:
            x: `[N, F]`.
            graph: `edge_index` `[2, E]`, or the HAG that stands for it.
            batch: int64 `[N]`, the graph of each node, or None where nodes are classified.
            num_graphs: G.

        Returns:
            `[G, C]`, or `[N, C]` without `batch`.
        """
        x = self.conv1(x, graph).relu()
        x = self.conv2(x, graph).relu()
        if batch is not None:
            x = global_mean_pool(x, batch, num_graphs)
        return self.out(x)  # type: ignore[no-any-return]


class Side:
    """Stock or accelerated: its data, its model and what is measured."""

    def __init__(self, data: GraphData, settings: Settings, accelerated: bool) -> None:
        torch.set_num_threads(settings.threads)
        self.settings = settings
        self.accelerated = accelerated
        self.by_graph = data.labels_graphs
        torch.manual_seed(settings.seed)
        assert data.x is not None
        self.model = Classifier(data.x.shape[1], settings.hidden, data.num_classes)
        self.graphs = _as_pyg(data)
        self.test = _split(data, settings.seed)
        _warm_up()
        self.memory_before = _reset_peak_memory()
        self.optimizer = torch.optim.Adam(
            self.model.parameters(),
            settings.learning_rate,
            weight_decay=0.0 if self.by_graph else 5e-4,
        )

    def prepare(self) -> dict[str, Any]:
        """Searches the HAGs (accelerated) and makes the loaders; says what the search took."""
        found: dict[str, Any] = {}
        if self.accelerated:
            from hag_plugin.pyg import ToHAG, accelerate

            transform = ToHAG(self_loops="fill", method=self.settings.method)
            start = time.perf_counter()
            self.graphs = [transform(graph) for graph in self.graphs]
            found["search_seconds"] = time.perf_counter() - start
            stats = [graph.hag.stats("fill") for graph in self.graphs]
            found["stats"] = {k: sum(getattr(s, k) for s in stats) for k in SUMMED}
            self.model = accelerate(self.model)
        self.train_loader: Iterable[Any] = self.graphs
        self.test_loader: Iterable[Any] = self.graphs
        if self.by_graph:
            size, order = self.settings.batch_size, torch.Generator()
            order.manual_seed(self.settings.seed)
            test = self.test.tolist()
            train = [g for g, held_out in zip(self.graphs, test, strict=True) if not held_out]
            rest = [g for g, held_out in zip(self.graphs, test, strict=True) if held_out]
            self.train_loader = DataLoader(train, size, shuffle=True, generator=order)
            self.test_loader = DataLoader(rest, size)
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
        for data in self.train_loader:
            self._graph(data)
            batching += time.perf_counter() - ready
            scores, label = self._scores(self.model, data), data.y
            if not self.by_graph:
                scores, label = scores[data.train_mask], label[data.train_mask]
            loss = cross_entropy(scores, label)
            self.optimizer.zero_grad()
            torch.autograd.backward(loss)
            self.optimizer.step()
            total += loss.item() * len(label)
            count += len(label)
            ready = time.perf_counter()
        return time.perf_counter() - start, batching, total / max(count, 1)

    def finish(self) -> dict[str, Any]:
        """Peak memory of search and training in bytes, and the accuracy on the test set."""
        peak = _peak_memory()
        memory = None if peak is None or self.memory_before is None else peak - self.memory_before
        right = count = 0
        scores = torch.from_numpy(self.outputs(torch.float32))
        for data in self.test_loader:
            label = data.y if self.by_graph else data.y[data.test_mask]
            right += int((scores[count : count + len(label)].argmax(1) == label).sum())
            count += len(label)
        return {"peak_bytes": memory, "accuracy": right / max(count, 1)}

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
        for data in self.test_loader:
            data = data.clone() if dtype != data.x.dtype else data
            data.x = data.x.to(dtype)
            out = self._scores(model, data)
            scores.append(out if self.by_graph else out[data.test_mask])
        return torch.cat(scores).numpy()

    def weights(self) -> dict[str, np.ndarray]:
        """The model's parameters by name."""
        return {k: v.detach().numpy().copy() for k, v in self.model.state_dict().items()}

    def _scores(self, model: nn.Module, data: Any) -> Tensor:
        batch = data.batch if self.by_graph else None
        groups = data.num_graphs if self.by_graph else 1
        return model(data.x, self._graph(data), batch, groups)  # type: ignore[no-any-return]

    def _graph(self, data: Any) -> Any:
        return data.hag if self.accelerated else data.edge_index


def _as_pyg(data: GraphData) -> list[Any]:
    """A `Data` for each labelled graph; one, with masks, where nodes are labelled."""
    if not data.labels_graphs:
        return [Data(data.x, data.edge_index, y=data.y, train_mask=data.train_mask,
                     test_mask=data.test_mask)]  # fmt: skip
    assert data.graph_ptr is not None
    assert data.x is not None
    assert data.y is not None
    graph = torch.searchsorted(data.graph_ptr, data.edge_index[1], right=True) - 1
    order = torch.sort(graph, stable=True).indices
    counts = torch.bincount(graph, minlength=data.num_graphs)
    edges = torch.split(data.edge_index[:, order], counts.tolist(), 1)
    rows = torch.split(data.x, data.graph_ptr.diff().tolist())
    return [
        Data(x.clone(), (e - first).contiguous(), y=label.view(1))
        for x, e, first, label in zip(rows, edges, data.graph_ptr, data.y, strict=False)
    ]


def _split(data: GraphData, seed: int) -> Tensor:
    """Which graphs are held out for the test, bool `[G]`; for nodes the masks say."""
    held_out = torch.zeros(data.num_graphs, dtype=torch.bool)
    if data.labels_graphs:
        order = np.random.default_rng(seed).permutation(data.num_graphs)
        held_out[torch.from_numpy(order[: max(1, round(TEST_SHARE * data.num_graphs))])] = True
    return held_out


def _warm_up() -> None:
    """Loads the code of a forward and backward pass, which would count as memory otherwise."""
    model = Classifier(2, 2, 2)
    edges = torch.tensor([[0, 1], [1, 0]])
    scores = model(torch.ones(2, 2), edges, torch.zeros(2, dtype=torch.long), 1)
    torch.autograd.backward(cross_entropy(scores, torch.zeros(1, dtype=torch.long)))


# Peak memory --------------------------------------------------------------------------------------


def _status_bytes(field: str) -> int | None:
    try:
        with open("/proc/self/status") as file:
            line = next((line for line in file if line.startswith(field + ":")), None)
    except OSError:
        return None
    return None if line is None else int(line.split()[1]) * 1024


def _reset_peak_memory() -> int | None:
    """Resident bytes now, from where growth is counted; the kernel's peak mark is reset."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        return _peak_memory()
    return _status_bytes("VmRSS")


def _peak_memory() -> int | None:
    """The most bytes that were resident, or None where the system does not tell."""
    peak = _status_bytes("VmHWM")
    if peak is not None or os.name != "posix":
        return peak
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


# The process --------------------------------------------------------------------------------------


def serve(
    connection: Connection, arrays: dict[str, Any], settings: Settings, accelerated: bool
) -> None:
    """Runs a `Side` on request: takes `(method, arguments)`, answers `(ok, result)`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process on Ctrl-C
    tqdm.set_lock(threading.RLock())  # its own would be a semaphore, leaked if we are ended
    try:
        side = Side(from_arrays(arrays), settings, accelerated)
        connection.send((True, None))
        while True:
            method, arguments = connection.recv()
            connection.send((True, getattr(side, method)(*arguments)))
    except EOFError:
        return
    except Exception as e:
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
