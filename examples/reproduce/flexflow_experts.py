"""Strategies that people use: the baselines of both papers."""

from __future__ import annotations

from .flexflow_model import SoapModel
from .flexflow_soap import Config

NODE = 4  # GPUs of a node, in both papers' clusters


def data_parallel(model: SoapModel) -> list[int]:
    """Every operation splits the batch over all devices."""
    return [_batch(model, node) for node in range(len(model.names))]


def model_parallel(model: SoapModel) -> list[int]:
    """Every operation splits channels as far as it can; those without channels split the batch."""
    return [_channels(model, node) for node in range(len(model.names))]


def one_weird_trick(model: SoapModel) -> list[int]:
    """Data parallel, but for dense layers, whose channels are split (arXiv 1404.5997)."""
    return [
        _channels(model, node) if model.operation(node).kind == "linear" else _batch(model, node)
        for node in range(len(model.names))
    ]


def layer_per_device(model: SoapModel) -> list[int]:
    """Data parallel over nodes, and inside a node each layer on a device of its own.

    The expert strategy of recurrent networks (GNMT, arXiv 1609.08144): layers of one depth of the
    unrolled network work on different time steps at the same time. Not in the space "unplaced".
    """
    topology = model.topology
    group = min(NODE, topology.num_devices)
    nodes = topology.num_devices // group
    strategy = []
    for node, layer in enumerate(model.layer_of):
        devices = tuple(layer % group + group * i for i in range(nodes))
        strategy.append(model.place[node][Config((nodes, 1, 1, 1), devices)])
    return strategy


def _batch(model: SoapModel, node: int) -> int:
    return model.place[node][_first(_fitting(model, node, 0), 1)]


def _channels(model: SoapModel, node: int) -> int:
    if "c" not in model.operation(node).splits:
        return _batch(model, node)
    return model.place[node][_first(1, _fitting(model, node, 1))]


def _first(samples: int, channels: int) -> Config:
    return Config((samples, channels, 1, 1), tuple(range(samples * channels)))


def _fitting(model: SoapModel, node: int, axis: int) -> int:
    size, degree = model.operation(node).shape[axis], model.topology.num_devices
    while degree > size:
        degree //= 2
    return degree
