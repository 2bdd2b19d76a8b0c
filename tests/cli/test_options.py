"""Values of options."""

from __future__ import annotations

from hag_plugin.cli.options import size


def test_sizes_are_binary() -> None:
    assert [size(t) for t in ("70GiB", "1.5G", "512m", "1024")] == [
        70 << 30, 3 << 29, 512 << 20, 1024,
    ]  # fmt: skip
