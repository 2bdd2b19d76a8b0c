"""The README's figures that do not depend on a machine are what the package gives."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import hag_plugin as hp
from hag_plugin.data import datasets

README = Path(__file__).parents[1] / "README.md"
ROW = re.compile(
    r"^\| ([\w -]+?)(?: \(a reconstruction\))? \| ([\d.]+)x fewer \| ([\d.]+)x fewer \|$"
)
FILES = {"COLLAB-like": "COLLAB_ego_recon"}


def rows() -> list[tuple[str, str, str]]:
    if not README.is_file():  # the tests alone were copied, without the README
        return []
    found = [ROW.match(line) for line in README.read_text().splitlines()]
    return [(m[1], m[2], m[3]) for m in found if m]


def test_the_table_is_there() -> None:
    if not README.is_file():
        pytest.skip("no README beside these tests")
    assert len(rows()) == 9


@pytest.mark.mostly_slow("Cora*", "BZR_MD*", "IMDB*")
@pytest.mark.parametrize(("name", "closed", "plain"), rows())
def test_rows_read(shared_data: Path, name: str, closed: str, plain: str) -> None:
    graph = datasets.load(str(shared_data / "npz" / f"{FILES.get(name, name)}.npz"))
    hag = hp.build_hag(graph.edge_index, num_nodes=graph.num_nodes)
    for self_loops, told in (("fill", closed), (False, plain)):
        stats = hag.stats(self_loops)
        assert f"{stats.rows_read_before / stats.rows_read:.2f}" == told
