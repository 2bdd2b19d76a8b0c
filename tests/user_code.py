"""What type checkers make of a user's code: `mypy tests/user_code.py`, in CI."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import assert_type

import hag_plugin as hp
from hag_plugin.explanation import Explanation
from hag_plugin.parallel.search.plan import Plan


class Net(nn.Module):
    hidden: int = 16


def train(data: object) -> None:
    net = hp.accelerate(Net())
    assert_type(net, Net)
    assert_type(hp.restore(hp.forget(net)), Net)
    assert_type(hp.explain(net), Explanation)
    assert_type(hp.explain(net).rows[0].reason, str)
    assert_type(hp.pyg.ToHAG(), hp.pyg.ToHAG)
    assert_type(hp.dgl.ToHAG(), hp.dgl.ToHAG)
    assert_type(hp.parallel.plan(hp.parallel.trace(net, data)), Plan)


def aggregate(edges: Tensor) -> None:
    hag = hp.build_hag(edges)
    assert_type(hag, hp.HAG)
    assert_type(hp.aggregate(torch.zeros(3, 2), hag), Tensor)
    assert_type(hag.stats().choice, hp.Choice)


@hp.hag_layer
class Layer(nn.Module):
    width: int = 3


assert_type(Layer().width, int)
