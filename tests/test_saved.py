"""Saved objects name public places only, and are found there by a fresh process."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import hag_plugin as hp
from hag_plugin.explanation import Calls, Row
from hag_plugin.recall import Recall

from .saving import assert_names_stay, modules_named, run_fresh

EDGES = torch.tensor([[0, 1, 2, 0, 1, 3], [1, 0, 0, 2, 2, 2]])


def _built() -> hp.HAG:
    hag = hp.build_hag(EDGES, num_nodes=4, self_loops=[False, "add"])
    hag.transpose()
    hag.kept("something", lambda: torch.ones(3))
    return hag


SAVED: dict[str, Callable[[], Any]] = {
    "HAG": _built,
    "batch": lambda: hp.batch([_built(), _built()]),
    "stats": lambda: _built().stats(),
    "tree": lambda: hp.sequence.build_sequence(EDGES, num_nodes=4),
    "tree's stats": lambda: hp.sequence.build_sequence(EDGES, num_nodes=4).stats(),
    "memory": Recall,
    "calls": Calls,
    "row": lambda: Row("conv", "GCNConv", True, "sum over A", ""),
}


@pytest.mark.parametrize("name", SAVED)
def test_names_stay(name: str, tmp_path: Path) -> None:
    value = SAVED[name]()
    assert_names_stay(value)
    torch.save(value, tmp_path / "value.pt")
    assert modules_named((tmp_path / "value.pt").read_bytes())  # some are named
    assert_names_stay(value)


def test_a_fresh_process_finds_them(tmp_path: Path) -> None:
    """It has imported nothing before: the names alone must lead to the classes."""
    values = {name: make() for name, make in SAVED.items()}
    (tmp_path / "all.pkl").write_bytes(pickle.dumps(values))
    code = (
        "import pickle; found = pickle.load(open('all.pkl', 'rb'));"
        "print(found['HAG'].content_hash, found['tree'].num_prefixes, sorted(found))"
    )
    hag, tree = values["HAG"], values["tree"]
    assert run_fresh(code, tmp_path).strip() == (
        f"{hag.content_hash} {tree.num_prefixes} {sorted(values)}"
    )


def test_a_private_place_is_noticed() -> None:
    from hag_plugin.hag.program import Options

    with pytest.raises(AssertionError):
        assert_names_stay(Options())
