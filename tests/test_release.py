"""What makes a release holds together: the workflow, and what it is told in pyproject.toml."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

import hag_plugin as hp
from hag_plugin.extras import EXTRAS

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")

ROOT = Path(__file__).parents[1]
WORKFLOW = ROOT / ".github" / "workflows" / "release.yml"

pytestmark = [
    pytest.mark.skipif(not WORKFLOW.is_file(), reason="not in the project's folder"),
    pytest.mark.skipif(sys.version_info < (3, 11), reason="reads TOML"),
]


def project() -> dict[str, Any]:
    import tomllib

    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def jobs() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(WORKFLOW.read_text())["jobs"]
    return found


def test_the_version_is_the_same_wherever_it_stands() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]
    released = re.findall(r"^## \[(\d\S*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert {project()["project"]["version"], citation, released[0]} == {hp.__version__}


def test_links_of_the_project_are_those_of_its_papers() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())["references"]
    assert {*project()["project"]["urls"].values()} == {paper["url"] for paper in cited}


def test_extras_have_the_packages_that_errors_say() -> None:
    names = {"sklearn": "scikit-learn"}
    for package, (_, extra) in EXTRAS.items():
        wanted = project()["project"]["optional-dependencies"][extra]
        assert names.get(package, package) in {re.match(r"[\w-]+", each)[0] for each in wanted}  # type: ignore[index]


def test_jobs_wait_for_jobs_that_are_there() -> None:
    for name, job in jobs().items():
        needs = job.get("needs", [])
        for needed in [needs] if isinstance(needs, str) else needs:
            assert needed in jobs(), name


def test_what_is_fetched_was_kept_before() -> None:
    kept = [
        step["with"]["name"]
        for job in jobs().values()
        for step in job["steps"]
        if step.get("uses", "").startswith("actions/upload-artifact")
    ]
    fetched = [
        step["with"]["name"]
        for job in jobs().values()
        for step in job["steps"]
        if step.get("uses", "").startswith("actions/download-artifact") and "name" in step["with"]
    ]
    assert fetched
    assert {*fetched} <= {*kept}


def test_only_a_tag_publishes() -> None:
    publishing = {
        name: job
        for name, job in jobs().items()
        if any("publish" in step.get("uses", "") for step in job["steps"])
    }
    assert [*publishing] == ["publish"]
    assert publishing["publish"]["if"] == "startsWith(github.ref, 'refs/tags/v')"


def test_every_python_gets_a_wheel() -> None:
    """One each below the stable ABI's first version, and that one for all later ones."""
    made = {entry.removesuffix("-*") for entry in project()["tool"]["cibuildwheel"]["build"]}
    abi3 = project()["tool"]["scikit-build"]["wheel"]["py-api"]
    versions = re.findall(
        r"Python :: 3\.(\d+)$", "\n".join(project()["project"]["classifiers"]), re.MULTILINE
    )
    assert versions
    needed = {f"cp3{minor}" for minor in versions if int(minor) < int(abi3[3:])}
    assert made == {*needed, abi3}


def test_what_is_run_on_a_wheel_is_there() -> None:
    options = project()["tool"]["cibuildwheel"]
    files = [word for word in options["test-command"].split() if word.endswith(".py")]
    assert files
    for file in files:
        assert (ROOT / file).is_file()
        assert any(Path(file).is_relative_to(folder) for folder in options["test-sources"])
