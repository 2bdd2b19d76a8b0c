"""Plain edge indices in an accelerated model: a graph that comes back gets its HAG, any other is
summed as it is."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hag_plugin.hag.build import build_hag
from hag_plugin.hag.hag import HAG
from hag_plugin.limits import limits
from hag_plugin.modes import outside_inference
from hag_plugin.recall import Passing, Recall, decide, is_run_again
from hag_plugin.saved import set_module

_top_hooks = torch._C._autograd._top_saved_tensors_default_hooks
CACHED = "cached"  # what is kept of an edge index whose graph a layer keeps


@set_module("hag_plugin.pyg")
class Session:
    """What the root of an accelerated model knows about the edge indices it was called with.

    The root's forward pre-hook (the session itself) counts forwards. Met in a first forward, the
    rows of a tensor's graph are summed as they are, where that pays; only when it comes back in a
    later forward its HAG is built, so that sampled batches are never searched. Decisions go by
    counts, never by time: ranks of a distributed job decide alike. Copies and pickles start anew.

    Attributes:
        forwards: of the root, so far.
        graphs: what was built of edge indices.
        verdicts: what layers found out about edge indices.
    """

    def __init__(self) -> None:
        self.forwards = 0
        self.graphs = Recall(limits.pyg_graphs)
        self.verdicts = Recall(limits.pyg_graphs)
        self._caches: weakref.WeakKeyDictionary[Any, object] = weakref.WeakKeyDictionary()

    def __call__(self, module: Any, inputs: Any) -> None:
        """The forward pre-hook of the root module."""
        if torch.compiler.is_compiling():
            return
        is_bare = _top_hooks(True) is None and torch._C._current_graph_task_id() < 0
        if is_bare or not is_run_again():
            self.forwards += 1

    def __reduce__(self) -> tuple[type[Session], tuple[()]]:
        return Session, ()

    def hag_of(self, edge_index: Tensor, num_src: int, num_dst: int) -> HAG | None:
        """The HAG of a tensor that came back; None where the stock layer is to run.

        Args:
            edge_index: the tensor.
            num_src: the number of sources.
            num_dst: the number of targets.
        """
        size = (num_src, num_dst)
        built: HAG | None = self.built_of(
            (edge_index,), size, lambda: build_hag(edge_index, size=size)
        )
        return built

    def built_of(
        self,
        tensors: tuple[Tensor, ...],
        key: tuple[Any, ...],
        make: Callable[[], Any],
        passing: Callable[[], Any] | None = None,
    ) -> Any:
        """What `make` makes of tensors, of which the first is an edge index, once they came back.

        Before, what `passing` makes of them, as `Passing`. None where there is neither: they
        cannot be known again, or nothing is to be built.

        Args:
            tensors: of the edges.
            key: what else it depends on.
            make: makes it.
            passing: makes what serves them before they come back; None where that does not pay.
        """
        num_edges = tensors[0].shape[1]
        return self.graphs.value(
            tensors,
            key,
            lambda: build(num_edges, make),
            occasion=self.forwards,
            passing=None if passing is None else lambda: _made(passing),
        )

    def forget(self) -> None:
        """Forgets all graphs; counts go on."""
        self.graphs.clear()
        self.verdicts.clear()
        self._caches.clear()

    @property
    def num_hags(self) -> int:
        """Number of graphs that run on a HAG now."""
        left = (type(None), Passing, str)
        return sum(not isinstance(built, left) for built in self.graphs.values())

    # Layers with cached=True run the graph of their first call for ever -------------------------

    def fills_cache(self, conv: Any, edge_index: Tensor, size: tuple[int, int]) -> None:
        """Notes that a layer with `cached=True` is about to keep this tensor's graph."""
        if is_run_again():
            return
        things, about = (edge_index,), (CACHED, size)
        graph = self.verdicts.get(things, about)
        if graph is None:  # any object does, to tell this graph from others
            graph = object()
            self.verdicts.put(things, about, graph)
        self._caches[conv] = graph

    def is_cached(self, conv: Any, edge_index: Tensor, size: tuple[int, int]) -> bool:
        """Whether the graph that a layer with `cached=True` keeps is this tensor's."""
        about = (CACHED, size)

        def take() -> bool:
            graph = self.verdicts.get((edge_index,), about)
            return graph is not None and graph is self._caches.get(conv)

        return decide(about, take)


def build(num_edges: int, make: Callable[[], Any]) -> Any:
    """What `make` gives, on behalf of `num_edges` edges; None where these are too many, or no
    edges of such a graph."""
    most = limits.searched_edges
    if num_edges > most:
        warnings.warn(
            f"an edge_index with {num_edges:,} edges came back; from {most:,} edges "
            "on, its HAG is not built during training: call hag_plugin.build_hag once and pass "
            "the HAG where edge_index stands",
            stacklevel=2,
        )
        return None
    return _made(make)


def _made(make: Callable[[], Any]) -> Any:
    try:
        with outside_inference(), torch.no_grad():
            return make()
    except ValueError:  # ids out of range: the stock layer says so in its own words
        return None
