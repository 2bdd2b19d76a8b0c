"""What is timed: each call as often as the others, in turns."""

from __future__ import annotations

import pytest
import torch

from hag_plugin.pages.layers import LEAST, MOST, WARM_UPS, in_turns


@pytest.mark.parametrize("count", [1, 2, 3])
def test_calls_take_turns(count: int) -> None:
    order: list[int] = []
    runs = [lambda number=number: order.append(number) for number in range(count)]
    seconds = in_turns(runs, torch.device("cpu"))
    assert len(seconds) == count
    assert all(each >= 0 for each in seconds)
    rounds, rest = divmod(len(order), count)
    assert (rest, order) == (0, [*range(count)] * rounds)
    assert WARM_UPS + LEAST <= rounds <= WARM_UPS + MOST
