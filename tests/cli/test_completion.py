"""`hag-plugin --print-completion`: a shell that has read the script completes what there is."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from hag_plugin.cli import main
from hag_plugin.cli.completion import SHELLS

from .test_every_command import COMMANDS

pytest.importorskip("shtab")


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["--print-completion", shell]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("shell", SHELLS)
def test_scripts_name_every_command_and_option(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = script(shell, capsys)
    for name, parser in COMMANDS.items():
        assert name in text
        for action in parser._actions:
            assert all(option.lstrip("-") in text for option in action.option_strings)


def completed(words: list[str], folder: Path) -> list[str]:
    """What bash offers for the last word."""
    program = f"""
        source script.bash
        COMP_WORDS=({" ".join(f"'{word}'" for word in words)}); COMP_CWORD={len(words) - 1}
        _shtab_hag_plugin hag-plugin '{words[-1]}' '{words[-2]}'
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", program], cwd=folder, capture_output=True, text=True,
                          check=True)  # fmt: skip
    return done.stdout.split()


def test_bash_completes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if shutil.which("bash") is None:
        pytest.skip("there is no bash")
    (tmp_path / "script.bash").write_text(script("bash", capsys))
    (tmp_path / "graph.npz").write_text("")
    (tmp_path / "parts").mkdir()
    assert {*COMMANDS} <= {*completed(["hag-plugin", ""], tmp_path)}
    assert completed(["hag-plugin", "sta"], tmp_path) == ["stats"]
    assert completed(["hag-plugin", "stats", "--self"], tmp_path) == ["--self-loops"]
    assert completed(["hag-plugin", "stats", "--self-loops", ""], tmp_path) == [
        "add", "fill", "none",
    ]  # fmt: skip
    assert completed(["hag-plugin", "stats", "gr"], tmp_path) == ["graph.npz"]
    assert completed(["hag-plugin", "stats", "--root", "p"], tmp_path) == ["parts"]


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells_read_the_script(
    shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    (tmp_path / "script").write_text(script(shell, capsys))
    subprocess.run([shell, "-n", str(tmp_path / "script")], check=True)
