"""Kinds of devices: each is whole, and what asks for one is told of all."""

from __future__ import annotations

import pytest
import torch

from hag_plugin import devices
from hag_plugin.devices import KINDS
from hag_plugin.hag import cost


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_is_whole(name: str) -> None:
    kind = KINDS[name]
    assert torch.device(name).type == kind.name == name
    assert devices.kind_of(torch.device(name, 0)) is kind
    assert devices.kind_with(kind.collectives) is kind
    assert kind.collectives in devices.backends()
    operator = "hag_plugin::aggregate"
    assert torch._C._dispatch_has_kernel_for_dispatch_key(operator, kind.dispatch_key)
    assert cost.prices(64, name)  # there is a price
    if kind.launches is None:
        assert devices.is_available(kind)
        assert devices.current(kind) == torch.device(name)
        assert devices.name_of(name) is None
        devices.synchronize(name)
    else:
        assert cost.launch_seconds(0, 0, 64, name) == kind.launches.seconds


def test_what_is_not_known_is_as_the_cpu() -> None:
    assert devices.kind_of("meta") is KINDS["cpu"]
    assert devices.kind_with("mpi") is KINDS["cpu"]


def test_of_several_backends_the_one_beside_the_cpu_counts() -> None:
    assert devices.kind_with("cpu:gloo,cuda:nccl").name == "cuda"


def test_the_random_state_comes_back() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with devices.forked_random_state(torch.device("cpu")):
        torch.rand(7)
    assert torch.equal(torch.rand(3), expected)
