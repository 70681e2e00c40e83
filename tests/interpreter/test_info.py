"""`bertgen info --check` runs the kernels and reports which are wrong."""

from __future__ import annotations

import dataclasses
import json

from bertgen.kernels.all_cases import CHECKS

from bertgen import cli


def test_kernels_that_are_right_and_wrong(capsys, monkeypatch):
    assert cli.main(["info", "--json", "--check", "bias_gelu"]) == 0
    cases = 2 * sum(case.core for case in CHECKS["bias_gelu"].cases)
    assert json.loads(capsys.readouterr().out)["check"] == {"bias_gelu": f"{cases} cases, none wrong"}

    right = CHECKS["bias_gelu"].triton
    monkeypatch.setitem(
        CHECKS, "bias_gelu", dataclasses.replace(CHECKS["bias_gelu"], triton=lambda **named: right(**named) * 1.01)
    )
    assert cli.main(["info", "--json", "--check", "bias_gelu"]) == 1
    told = json.loads(capsys.readouterr().out)["check"]["bias_gelu"]
    assert "wrong, such as" in told and "allowed are" in told

    monkeypatch.setitem(CHECKS, "bias_gelu", dataclasses.replace(CHECKS["bias_gelu"], triton=lambda **named: 1 / 0))
    assert cli.main(["info", "--check", "bias_gelu"]) == 1
    assert f"{cases} cases, {cases} wrong, such as" in capsys.readouterr().out
