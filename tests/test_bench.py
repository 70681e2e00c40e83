"""The benchmark scripts run, their tokens agree, and where they do not the command says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bertgen import extension

ROOT = Path(__file__).parents[1]


def run(script: str, *arguments: object) -> str:
    command = [sys.executable, ROOT / "bench" / script, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=True).stdout


@pytest.fixture
def generate(monkeypatch):
    """The command as a module, which asks for few requests of a small model."""
    monkeypatch.syspath_prepend(ROOT / "bench")
    import generate
    import machine

    monkeypatch.setattr(machine, "speeds", lambda: (1e11, 1e10))  # a second or more each time

    def command(*more: object) -> int:
        few = ("--size", "smoke", "--requests", 3, "--repeats", 1, "--batches", 2, "--only", "fixed", "--same-process")
        return generate.main([*map(str, (*few, *more))])

    return command


@pytest.fixture
def module(generate):
    """A module of the command, by name."""
    return sys.modules.__getitem__


def test_a_run(generate, tmp_path, capsys):
    assert generate("--json", tmp_path / "new" / "result.json") == 0
    result = json.loads((tmp_path / "new" / "result.json").read_text())
    assert [(row["kind"], row["beams"]) for row in result["rows"]] == [("fixed", 1), ("fixed", 4)]
    for row in result["rows"]:
        assert row["requests"] == 3 and row["limit"] > 0 and not row["wrong"]
        assert {one["batch"] for one in row["engines"].values()} == {2}
        assert all(one["equal"] == one["compared"] == 3 for one in row["engines"].values())
        assert row["engines"]["transformers"]["variant"] in ("sdpa", "eager")
    assert result["torch"] and result["commit"] is not None and result["dirty"] in (True, False)
    assert capsys.readouterr().out.count("3 of 3") >= 2


def test_engines_in_processes_of_their_own(generate, module):
    contenders, workload = module("contenders"), module("workload")
    size = workload.SIZES["smoke"]
    apart, together = (contenders.load(size, apart)[0] for apart in (True, False))
    assert len(apart) == len(together) >= 2
    for one, other in zip(apart, together, strict=True):
        assert (one.name, one.variants) == (other.name, other.variants)
        given = [[7, 8, 9], [9, 10]], [3, 4], 1, 2
        assert one.run(*given, one.variants[0]) == other.run(*given, other.variants[0])
        one.close()


@pytest.mark.parametrize("name", ["Bertgen", "Transformers"])
def test_a_wrong_token_fails_the_run(generate, module, monkeypatch, capsys, name):
    kind = getattr(module("contenders"), name)
    right = kind.run

    def wrong(self, sources, *arguments):
        found = right(self, sources, *arguments)
        found[-1][-1] ^= 1
        return found

    monkeypatch.setattr(kind, "run", wrong)
    assert generate() == 1
    said = capsys.readouterr().err
    assert "wrong: fixed, greedy, transformers" in said and "request 2 differs at token 31, margin " in said


def test_an_output_that_stops_early_is_wrong(generate, module, monkeypatch, capsys):
    kind = module("contenders").Transformers
    right = kind.run
    monkeypatch.setattr(kind, "run", lambda self, *arguments: [ids[:-1] for ids in right(self, *arguments)])
    assert generate() == 1
    assert "request 0 stopped after 32 and 31 tokens of 32" in capsys.readouterr().err


@pytest.mark.parametrize("package, name", [("transformers", "transformers"), ("ctranslate2.converters", "CTranslate2")])
def test_a_missing_engine_is_said_to_be_missing(generate, monkeypatch, capsys, tmp_path, package, name):
    monkeypatch.setitem(sys.modules, package, None)
    assert generate("--json", tmp_path / "result.json") == 0
    printed = capsys.readouterr().out
    (greedy,) = [line for line in printed.splitlines() if line.startswith("| fixed, greedy")]
    assert "| missing |" in greedy
    assert f"{name} is missing: the comparison needs a package that cannot be imported" in printed
    result = json.loads((tmp_path / "result.json").read_text())
    assert name in result["missing"] and name not in result["rows"][0]["engines"]


@pytest.mark.parametrize("beams", [1, 4])
def test_a_difference_is_excused_at_a_tie_only(generate, module, monkeypatch, beams):
    """The judge's own search is asked where outputs differ; its margins are those of our logits."""
    agreement, workload = module("agreement"), module("workload")
    model = workload.build(workload.SIZES["smoke"])
    case = workload.Case("fixed", beams, [[7, 8, 9]], [6])
    (ours,) = module("contenders").Bertgen(model).run(case.sources, case.lengths, beams, 1)
    other = [*ours[:4], ours[4] ^ 1, ours[5]]
    margins = agreement.margins(model, case.sources[0], 6, beams)
    assert len(margins) == 6 + (beams > 1) and all(margin > -1e-3 for margin in margins)
    judge = agreement.Judge(model)
    assert judge.compare(case, [ours], [[*ours, 99][: 6 + (beams == 1)]]) == agreement.Agreement(1, 1)
    assert len(judge.compare(case, [ours], [other]).wrong) == 1
    monkeypatch.setattr(agreement, "TIE", margins[4] + 1e-6 if beams == 1 else min(margins) + 1e-6)
    found = judge.compare(case, [ours], [other])
    assert (found.compared, found.equal, len(found.ties), found.wrong) == (1, 0, 1, [])


def test_outputs_of_beams_that_end_elsewhere_are_not_compared(generate, module):
    agreement, workload = module("agreement"), module("workload")
    case = workload.Case("mixed", 4, [[7], [8]], [2, 3])
    judge = agreement.Judge(workload.build(workload.SIZES["smoke"]))
    assert judge.compare(case, [[5, 6], [5, 6, 7]], [[8, 9, 9], [5, 6, 7]]) == agreement.Agreement(1, 1)


def test_what_limits_a_case(generate, module):
    workload = module("workload")
    size = workload.Size(hidden=2, layers=3, intermediate=5, heads=1, vocabulary=11)
    source, output = 3 * (4 * 4 + 2 * 2 * 5 + 2 * 4), 3 * (4 * 4 + 2 * 2 * 5 + 2 * 4) + 11 * 2
    case = workload.Case("mixed", 4, [[7] * 10, [7] * 20], [6, 9])
    assert case.flop(size) == 2 * (30 * source + 15 * 4 * output)
    assert case.limit(size, 100.0, 1e30) == case.flop(size) / 100
    assert case.limit(size, 1e30, 10.0) == 9 * 4 * output / 10, "the steps of the longest"
    assert case._replace(kind="single").limit(size, 1e30, 10.0) == 15 * 4 * output / 10


@pytest.mark.parametrize("operator", ["add_", "_foreach_add_"])
def test_a_recording_is_replayed_from_the_same_state(generate, module, operator):
    """A step that counts up in place, a tensor or a list of them: replays would run away with its index."""
    overhead = module("overhead")
    import torch

    table, place = torch.arange(4), torch.zeros((), dtype=torch.int64)

    def run(steps):
        for _ in range(steps):
            place.add_(1) if operator == "add_" else torch._foreach_add_([place], 1)
            table[place]

    recording = overhead.Recording(run, 3)
    assert int(place) == 3 and [call[0].overloadpacket.__name__ for call in recording.calls].count(operator) == 3
    for _ in range(3):
        assert recording.replayed() > 0 and int(place) == 3


@pytest.mark.long
def test_the_whole_comparison(tmp_path):
    (tmp_path / "pairs.tsv").write_text("Where is the station?\tWo ist der Bahnhof?\nHelp!\tHilfe!\n" * 4)
    files = ("--data", tmp_path / "pairs.tsv", "--json", tmp_path / "result.json")
    printed = run("generate.py", "--size", "smoke", "--requests", 8, "--singles", 2, "--repeats", 2, *files)
    result = json.loads((tmp_path / "result.json").read_text())
    assert [(row["kind"], row["beams"]) for row in result["rows"]] == [
        (kind, beams) for kind in ("fixed", "mixed", "single") for beams in (1, 4)
    ]
    for row in result["rows"]:
        assert "transformers" in row["engines"], printed
        assert all(one["compared"] > 0 and len(one["seconds"]) == 2 for one in row["engines"].values()), printed
        counts = {name: one["compared"] for name, one in row["engines"].items() if name != "CTranslate2"}
        assert set(counts.values()) == {row["requests"]}
    assert set(result["memory"]) == {"bertgen", "transformers"}
    assert all(0 < one["loaded"] < one["peak"] for one in result["memory"].values())
    steps = {(row["name"], row["beams"]): row for row in result["overhead"]}
    assert len(steps) == 6 and all(row["calls"] > 0 and row["operators"] > 0 for row in steps.values()), printed


@pytest.mark.long
def test_tokenizer_beside_transformers(tmp_path):
    (tmp_path / "texts.tsv").write_text("Where is the station?\tx\nI have lost my key.\ty\n" * 50)
    assert "100 sentences" in run("tokenizer.py", "--input", tmp_path / "texts.tsv", "--repeats", 1)


@pytest.mark.long
@pytest.mark.skipif(not extension.available(), reason=f"no C++ extension: {extension.absence()}")
def test_the_extension_beside_torch():
    assert "allocator, 1024 rows" in run("extension.py", "--rounds", 1, "--threads", 1, "--rows", 1, 4)


@pytest.mark.long
@pytest.mark.skipif(not extension.available(), reason=f"no C++ extension: {extension.absence()}")
def test_4_bit_products_and_decoding():
    few = ("--repeats", 1, "--rows", 1, 5, "--shapes", 64, 128, "--size", "smoke", "--tokens", 5)
    printed = run("int4.py", *few)
    assert "| 64 x 128 |" in printed
    rows = [line.split(" |")[0] for line in printed.splitlines() if "x (" in line]
    assert rows[:3] == ["| int4, output layer too", "| int4", "| float32"]
    assert rows[3:] == ["| CTranslate2 int8", "| CTranslate2 float32"] or "CTranslate2 is missing" in printed


@pytest.mark.long
def test_weights_in_4_bits_beside_floats(tmp_path):
    (tmp_path / "pairs.tsv").write_text("Where is the station?\tWo ist der Bahnhof?\nHelp!\tHilfe!\n" * 2)
    files = ("--data", tmp_path / "pairs.tsv", "--repeats", 1, "--num-beams", 1)
    rows = [line.split(" | ") for line in run("quantization.py", "models", *files).splitlines()[2:]]
    assert [row[0] for row in rows[:4]] == ["| float32", "| float16", "| int4", "| NF4"] and len(rows) == 6
    sizes = [float(row[1]) for row in rows]
    assert sizes[0] > sizes[1] > 8 > sizes[2] and all(float(cell) > 0 for row in rows for cell in row[2:4])
    assert "`decoder.bert.encoder.layer.*.intermediate.dense` | " in run("quantization.py", "layers")


@pytest.mark.long
def test_operators_beside_torch(tmp_path):
    printed = run("ops.py", "--size", "smoke", "--device", "cpu", "--seconds", 0.01, "--json", tmp_path / "ops.json")
    result = json.loads((tmp_path / "ops.json").read_text())
    assert {row["op"] for row in result["rows"]} >= {"attention", "decode_attention", "add_layer_norm", "int4_matmul"}
    assert all("bertgen" in row["times"] and not row["rejected"] for row in result["rows"]), printed
