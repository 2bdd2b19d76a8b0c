"""Bars of progress: text on stderr, or what a notebook shows instead. They leave nothing behind."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import TqdmWarning

with warnings.catch_warnings():
    warnings.simplefilter("ignore", TqdmWarning)  # a notebook without ipywidgets shows text
    from tqdm.auto import tqdm

DELAY = 2.0  # seconds that work may take without a bar
SHARE = "{desc}: {percentage:3.0f}% |{bar}| {elapsed} < {remaining}"


def bar(progress: bool | None, **options: Any) -> Any:
    """A bar of tqdm's.

    Args:
        progress: show it; None: of work that takes more than two seconds.
        options: of tqdm.
    """
    return tqdm(
        **options,
        disable=progress is False,
        delay=DELAY if progress is None else 0.0,
        file=sys.stderr,
        leave=False,
    )


@contextmanager
def shares(words: str, progress: bool | None) -> Iterator[Callable[..., None]]:
    """A bar of work that knows which share of it is done; what to call with that.

    Args:
        words: what is done, until a call says something else.
        progress: as for `bar`.
    """
    with bar(progress, total=1.0, desc=words, bar_format=SHARE) as shown:

        def report(share: float, said: str | None = None) -> None:
            if said is not None:
                shown.set_description_str(said, refresh=False)
            shown.update(share - shown.n)

        yield report
