"""OptCNN's additive cost of a network on a machine, and its exact optimum.

Equation 1 of arXiv 1802.04924: the sum over layers of computation and synchronisation, and over
edges of transfer, as if nothing overlapped.
"""

from __future__ import annotations

import sys

import numpy as np
from tqdm.auto import tqdm

from hag_plugin.parallel.search.elimination import CostGraph

from .flexflow_model import BYTES, SoapModel
from .flexflow_soap import Config, intervals, reads


def cost_graph(model: SoapModel, progress: bool = False) -> CostGraph:
    """The cost of each layer's configuration, and of each pair of them on an edge, in seconds.

    A layer that runs in several blocks of time steps has one configuration.
    """
    layers = model.network.layers
    nodes = [
        np.array([sum(node_seconds(model, node, config) for node in layer)
                  for config in model.configs[layer[0]]])
        for layer in layers
    ]  # fmt: skip
    tables: dict[tuple[object, ...], np.ndarray] = {}
    between: dict[tuple[int, int], np.ndarray] = {}
    bar = tqdm(model.reads, desc="transfer costs", disable=not progress, leave=False,
               file=sys.stderr)  # fmt: skip
    for edge, (u, v, read) in enumerate(bar):
        if read.weights:  # in one place for all of them
            continue
        source, target = model.operation(u), model.operation(v)
        # Edges of equal shapes cost the same, such as those of a repeated module.
        key = (source.shape, target.shape, source.splits, target.splits, read)
        if key not in tables:
            tables[key] = transfer_table(model, edge)
        first, second = model.layer_of[u], model.layer_of[v]
        if first == second:
            nodes[first] = nodes[first] + tables[key].diagonal()
        else:
            between[first, second] = between.get((first, second), 0.0) + tables[key]
    return CostGraph(nodes, [(u, v, table) for (u, v), table in between.items()])


def node_seconds(model: SoapModel, node: int, config: Config) -> float:
    """t_C + t_S: forward, backward, exchange of states, gradients and update, one after another."""
    total = max(sum(model.compute_seconds(node, config, device)) for device in config.devices)
    total += 2 * max((seconds for *_, seconds in model.exchange(node, config)), default=0.0)
    if model.copies(node, config):
        total += synchronise_seconds(model, node, config)
        total += max(model.update_seconds(node, config, device) for device in config.devices)
    return total


def synchronise_seconds(model: SoapModel, node: int, config: Config) -> float:
    """t_S: rings one after another, or the busiest link of the servers, there and back."""
    copies = [parts for parts in model.copies(node, config) if len(parts) > 1]
    if model.summed == "ring":
        return sum(model.all_reduce(node, config, parts)[1] for parts in copies)
    busy: dict[int, float] = {}
    for parts in copies:
        home = config.devices[model.home(node, parts)]
        for device in (config.devices[part] for part in parts):
            if device != home:
                links, seconds = model.message(device, home, model.shard_bytes(node, config))
                for link in links:
                    busy[link] = busy.get(link, 0.0) + seconds
    return 2.0 * max(busy.values(), default=0.0)


def transfer_seconds(model: SoapModel, edge: int, a: Config, b: Config) -> float:
    """t_X, forward and backward: the busiest link. The slow twin of `transfer_table`."""
    busy: dict[int, float] = {}
    for i, j, nbytes in model.messages(edge, a, b):
        x, y = a.devices[i], b.devices[j]
        if x != y:
            links, seconds = model.message(x, y, nbytes)
            for link in links:
                busy[link] = busy.get(link, 0.0) + seconds
    return 2.0 * max(busy.values(), default=0.0)


def transfer_table(model: SoapModel, edge: int) -> np.ndarray:
    """t_X of each pair of configurations, float64 `[of the first, of the second]`."""
    u, v, read = model.reads[edge]
    source, target = model.operation(u), model.operation(v)
    loads, latency, rate = _links(model)
    devices = model.topology.num_devices
    needed = [reads(target, read, source, b.degrees) for b in model.configs[v]]
    table = np.empty((len(model.configs[u]), len(model.configs[v])))
    halves: dict[tuple[int, ...], np.ndarray] = {}

    def half(axis: int, a: Config, j: int) -> np.ndarray:
        """Elements that parts share in two dimensions, `[parts of a, parts of b]`."""
        b = model.configs[v][j]
        key = (axis, *a.degrees[axis : axis + 2], *b.degrees[axis : axis + 2])
        if key not in halves:
            one, two = (
                _shared(source.shape[k], a.degrees[k], needed[j][k]) for k in (axis, axis + 1)
            )
            halves[key] = np.kron(one, two)
        return halves[key]

    for i, a in enumerate(model.configs[u]):
        sent = np.zeros((len(model.configs[v]), devices, devices))
        for j, b in enumerate(model.configs[v]):
            front, back = half(0, a, j), half(2, a, j)
            elements = front[:, None, :, None] * back[None, :, None, :]
            sent[j][np.ix_(a.devices, b.devices)] = elements.reshape(a.parts, b.parts)
        seconds = np.where(sent > 0, latency + sent * (BYTES * rate), 0.0)
        table[i] = 2.0 * (seconds.reshape(len(sent), -1) @ loads.T).max(axis=1, initial=0.0)
    return table


def _shared(size: int, degree: int, needed: tuple[tuple[int, int], ...]) -> np.ndarray:
    """What each part of a dimension holds of what each part of the output reads."""
    held, wanted = np.array(intervals(size, degree)), np.array(needed)
    low = np.maximum(held[:, None, 0], wanted[None, :, 0])
    high = np.minimum(held[:, None, 1], wanted[None, :, 1])
    return np.maximum(high - low, 0.0)


def _links(model: SoapModel) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which link carries what passes between which devices; latency and seconds a byte of it."""
    devices = model.topology.num_devices
    loads = np.zeros((len(model.resources) - devices, devices, devices))
    latency, rate = np.zeros((devices, devices)), np.zeros((devices, devices))
    for x, row in enumerate(model.routes):
        for y, (links, seconds, each) in enumerate(row):
            if x != y:
                latency[x, y], rate[x, y] = seconds, each
                for link in links:
                    loads[link - devices, x, y] = 1.0
    return loads.reshape(len(loads), -1), latency, rate
