"""Options of commands about plans: what no plan can be made for is refused in words."""

from __future__ import annotations

import pytest

from hag_plugin.cli import main

GRAPH = ["gcn", "--nodes", "1000", "--edges", "20000", "--features", "16"]
WHOLE = ("-5", "0", "nan", "2.5", "", "1e3", "many", "-0")
NUMBERS = ("-1", "nan", "inf", "-inf", "-1e-9", "", "much")
COMMANDS = {"plan": GRAPH, "simulate": GRAPH, "explain-plan": ["plan.json", *GRAPH], "probe": []}
POSITIVE = ("--nodes", "--features", "--hidden", "--layers", "--classes", "--devices")
OWN = [("simulate", "--proposals", ("-1", "nan", "2.5")), ("simulate", "--seed", ("-1", "nan")),
       ("simulate", "--seconds", NUMBERS), ("plan", "--memory", NUMBERS),
       ("probe", "--world-sizes", WHOLE), ("probe", "--largest", ("-1", "nan"))]  # fmt: skip
CASES = [
    *(("plan", option, WHOLE) for option in POSITIVE),
    *(("plan", option, NUMBERS) for option in ("--edges", "--halo-ratio")),
    *((command, option, ("-5",)) for command in COMMANDS for option in (*POSITIVE, "--edges")),
    *OWN,
]


@pytest.mark.parametrize(("command", "option", "values"), CASES, ids=lambda v: str(v))
def test_values_that_no_plan_has(
    command: str, option: str, values: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    for value in values:
        assert main([command, *COMMANDS[command], f"{option}={value}"]) == 2, value
        captured = capsys.readouterr()
        assert captured.out == ""
        assert f"argument {option}: {value!r}; expected" in captured.err
        assert "Traceback" not in captured.err


@pytest.mark.parametrize("value", ["0", "0.5", "1e3"])
def test_values_that_plans_have(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--hidden", "1", "--layers", "1", "--classes", "1", "--halo-ratio", value]
    assert main(["plan", *GRAPH, *sizes, "--topology", "cpu2"]) == 0
    assert "predicted" in capsys.readouterr().out
