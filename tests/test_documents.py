"""What is written beside the code: links lead somewhere, and the version is that of the package."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

import hag_plugin

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for folder in (".", "docs", "examples", "tests", "kernels")
    for path in ROOT.joinpath(folder).glob("*.md" if folder == "." else "**/*.md")
)
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")

pytestmark = pytest.mark.skipif(
    not (ROOT / "CITATION.cff").is_file(), reason="these tests are not in the project's folder"
)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_to_files_and_headings(document: str) -> None:
    path = ROOT / document
    for match in LINK.finditer(CODE.sub("code", path.read_text())):
        target, _, heading = (match[1] or match[2]).partition("#")
        if "://" in target:
            continue
        found = (path.parent / target).resolve() if target else path
        assert found.exists(), match[0]
        if heading:
            assert heading in headings(found), match[0]


def headings(path: Path) -> set[str]:
    """The anchors that are made of a document's headings."""
    lines = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line).strip().lower().replace(" ", "-") for line in lines}


def test_the_citation_is_of_this_version() -> None:
    version = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert version is not None
    assert version[1] == hag_plugin.__version__


@pytest.mark.parametrize("adapter", ["pyg.model", "dgl.aggregation"])
def test_every_reason_is_told_of(adapter: str) -> None:
    """docs/reasons.md has a row for each reason that `explain` may give, and no others."""
    pytest.importorskip({"pyg": "torch_geometric", "dgl": "dgl"}[adapter[:3]])
    choice = vars(import_module(f"hag_plugin.{adapter}.choice"))
    reasons = {text for name, text in choice.items() if name.isupper() and isinstance(text, str)}
    _, pyg, dgl = (ROOT / "docs" / "reasons.md").read_text().split("\n## ")
    page = pyg if adapter.startswith("pyg") else dgl
    told = re.findall(r"^\| (?!reason )(.*?) \| .*\|$", page, re.MULTILINE)
    assert len(told) == len({*told})
    assert {*told} == {text.strip(", ").replace("{}", "…") for text in reasons}
