"""Packages that need not be installed, and what to install where one is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

# What is imported: what people call it, and the extra that has it.
EXTRAS = {
    "torch_geometric": ("PyG", "pyg"),
    "dgl": ("DGL", "dgl"),
    "scipy": ("SciPy", "files"),
    "pyarrow": ("pyarrow", "files"),
    "sklearn": ("scikit-learn", "demo"),
    "matplotlib": ("matplotlib", "plot"),
    "pymetis": ("pymetis", "metis"),
    "shtab": ("shtab", "completion"),
}


def words(what: str, error: ImportError, extra: str | None = None) -> str | None:
    """What is missing and how to install it; None where that is no package of an extra.

    Args:
        what: needs it.
        error: of its import.
        extra: that has it, if not the usual one.

    Example:
        >>> words("plan", ModuleNotFoundError("No module named 'dgl'", name="dgl"))
        'plan needs DGL: pip install "hag-plugin[dgl]"'
    """
    package = (error.name or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or package not in EXTRAS:
        return None
    name, usual = EXTRAS[package]
    return f'{what} needs {name}: pip install "hag-plugin[{extra or usual}]"'


@contextmanager
def needed_by(what: str, extra: str | None = None) -> Iterator[None]:
    """Around imports: where a package of an extra is missing, says what needs it. See `words`.

    Raises:
        ModuleNotFoundError: one is missing.
    """
    try:
        yield
    except ModuleNotFoundError as e:
        said = words(what, e, extra)
        if said is None:
            raise
        raise ModuleNotFoundError(said, name=e.name, path=e.path) from e
