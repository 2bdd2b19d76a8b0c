"""Bars: one for each value, on one scale."""

from __future__ import annotations

import xml.dom.minidom

from hypothesis import given
from hypothesis import strategies as st

from hag_plugin.pages.bars import LEFT, RIGHT, WIDTH, bars
from hag_plugin.units import milliseconds

NAMES = ("as it was", "accelerated", "predicted")
VALUES = st.none() | st.floats(0, 1e12, allow_subnormal=False)


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=("Cc", "Cs"), exclude_characters="￾￿")),
        st.tuples(VALUES, VALUES, VALUES),
        max_size=6,
    )
)
def test_bars_are_in_proportion(groups: dict[str, tuple[float | None, ...]]) -> None:
    picture = xml.dom.minidom.parseString(bars(groups, NAMES)).documentElement
    assert picture is not None
    drawn = [
        float(each.getAttribute("width"))
        for each in picture.getElementsByTagName("rect")
        if each.getAttribute("x") == str(LEFT) and each.getAttribute("height") == "10"
    ]
    values = [v for group in groups.values() for v in group if v is not None]
    longest = max(values, default=0.0) or 1.0
    room = WIDTH - LEFT - RIGHT
    assert drawn == [float(f"{max(room * (v / longest), 1.0):.1f}") for v in values]
    words = [each.firstChild.data for each in picture.getElementsByTagName("text")
             if each.firstChild is not None]  # fmt: skip
    assert {*NAMES, "milliseconds", *map(milliseconds, values)} <= {*words}
    assert {label for label in groups if label} <= {*words}
