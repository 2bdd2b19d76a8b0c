"""Groups of horizontal bars of seconds, as SVG in a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from hag_plugin.units import milliseconds

COLOURS = ("#bbbbbb", "#4477aa", "#ccbb44")  # told apart by people who see colours in any way
LEFT, RIGHT, WIDTH = 190, 90, 760  # of labels, of figures and of all, in pixels
BAR, GAP = 12, 10


def bars(groups: Mapping[str, Sequence[float | None]], names: Sequence[str]) -> str:
    """A group of bars for each label, on one scale, with their milliseconds.

    Args:
        groups: the seconds of each label, one for each name; None: there are none.
        names: of the bars of a group.

    Example:
        >>> bars({"conv1": [2.0, 1.0]}, ["stock", "accelerated"]).count("<rect")
        4
    """
    longest = max((v for group in groups.values() for v in group if v is not None), default=0.0)
    y, shapes = GAP, []
    for label, values in groups.items():
        middle = y + BAR * len(values) / 2
        shapes.append(
            f'<text x="{LEFT - 8}" y="{middle:.0f}" text-anchor="end" '
            f'dominant-baseline="middle">{escape(label)}</text>'
        )
        for value, colour in zip(values, COLOURS, strict=False):
            if value is not None:
                length = max((WIDTH - LEFT - RIGHT) * (value / (longest or 1.0)), 1.0)
                shapes.append(
                    f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR - 2}" '
                    f'fill="{colour}"/><text x="{LEFT + length + 4:.1f}" y="{y + BAR / 2 - 1}" '
                    f'dominant-baseline="middle">{milliseconds(value)}</text>'
                )
            y += BAR
        y += GAP
    y += BAR
    for number, (name, colour) in enumerate(zip(names, COLOURS, strict=False)):
        x = LEFT + 150 * number
        shapes.append(
            f'<rect x="{x}" y="{y - BAR}" width="{BAR}" height="{BAR}" fill="{colour}"/>'
            f'<text x="{x + BAR + 5}" y="{y - BAR / 2}" dominant-baseline="middle">'
            f"{escape(name)}</text>"
        )
    shapes.append(
        f'<text x="{LEFT - 8}" y="{y - BAR / 2}" text-anchor="end" dominant-baseline="middle">'
        "milliseconds</text>"
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + GAP}" '
            f'width="{WIDTH}" font-family="system-ui, sans-serif" font-size="11" role="img">',
            *shapes,
            "</svg>",
        ]
    )
