"""The benchmarks: known times and bytes, changes beyond the spread, wrong answers, who is missing."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import matplotlib.image
import pytest
import torch
from bertgen.bench.result import Result, Row
from matplotlib.figure import Figure

from bertgen.bench import (
    agreement,
    check,
    clock,
    compare,
    contenders,
    figures,
    floors,
    generate,
    machine,
    ops,
    output,
    overhead,
    report,
    result,
    scale,
    shapes,
    suite,
    tables,
    train,
    workload,
)  # fmt: skip
from bertgen.cli import main
from bertgen.errors import ConfigError, InputError
from bertgen.ops import extension

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
SMOKE = workload.Plan(workload.SIZES["smoke"])


def module(name: str, *arguments: object) -> str:
    """What a module of the benchmarks prints."""
    command = [sys.executable, "-m", f"bertgen.bench.{name}", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(autouse=True)
def limits(monkeypatch):
    """Those of a machine that does 10 GB/s and 100 GFLOP/s; to measure them takes a second or more."""
    monkeypatch.setattr(machine, "limits", lambda *_: {"B": 1e10, "FLOP": 1e11})


def bench(*words: object) -> int:
    return main(["bench", *map(str, words)])


@pytest.fixture
def generated(tmp_path):
    """The command on few requests of a small model, all in this process: exit code, and the result."""

    def command(*more: object) -> tuple[int, Result]:
        few = "--size smoke --requests 3 --repeats 1 --batches 2 --only fixed --same-process --no-load".split()
        names = ["--engines", "bertgen", "transformers sdpa", "CTranslate2"]
        code = bench("generate", *few, *names, "--json", tmp_path / "new/result.json", *more)
        return code, result.load(tmp_path / "new/result.json")

    return command


def made(name="generate", contender="bertgen", seconds=(1.0, 1.1, 1.2), params=None, **more) -> Row:
    return Row(name, params or {"model": "base"}, contender, list(seconds), **more)


def resulting(*rows: Row, **environment: object) -> Result:
    known = {
        "device": "cpu",
        "commit": "abc",
        "dirty": False,
        "processor": "p",
        "threads": 1,
        "isa": "i",
        "time": "now",
    }
    known |= {"limits": {"B": 1e10, "FLOP": 1e11}}
    return Result("generate", "bertgen bench generate", {**known, **environment}, list(rows))


# The clock


def test_a_sleep_of_known_length():
    (taken,) = clock.race({"sleep": [lambda: time.sleep(0.02)]}, CPU, seconds=0.1).values()
    row = made(seconds=taken)
    assert len(taken) >= 5 and 0.02 <= min(taken) and row.median < 0.03


def test_a_short_call_is_repeated_within_a_sample():
    calls = []
    (taken,) = clock.race({"short": [lambda: calls.append(0), lambda: calls.append(1)]}, CPU, 0.0, least=3).values()
    assert len(taken) == 3 and max(taken) < clock.SHORTEST / 10 and len(calls) > 100
    assert set(calls) == {0, 1}, "both copies of the arguments are gone through"


def test_a_copy_of_known_bytes():
    source, target = torch.ones(2, 2**23).unbind()
    alone = min(machine.seconds(lambda: target.copy_(source)) for _ in range(10))
    (taken,) = clock.race({"copy": [lambda: target.copy_(source)]}, CPU, 0.05, least=15).values()
    row = made(seconds=[min(taken)], amount=2.0 * source.nbytes, unit="B", limit=2.0 * source.nbytes / alone)
    assert 0.5 < row.fraction < 2 and row.rate == pytest.approx(2 * source.nbytes / min(taken))


def test_contenders_take_turns():
    order = []
    clock.race({name: [lambda name=name: (order.append(name), time.sleep(1e-3))] for name in "ab"}, CPU, 0.0, least=3)
    last = "".join(order[-12:])
    assert last == "aabbaabbaabb", "each call that counts follows one that does not"


# Results


def test_a_result_is_read_as_it_was_written(tmp_path):
    before = resulting(made(extra={"peak": 3}), made(contender="other", seconds=(), absent="not installed"))
    result.save(before, tmp_path / "new/a.json")
    after = result.load(tmp_path / "new/a.json")
    assert (after.rows, after.environment, after.command) == (before.rows, before.environment, before.command)
    first = json.loads((tmp_path / "new/a.json").read_text())["rows"][0]
    assert (first["median"], first["quartiles"]) == (1.1, [1.05, 1.15]), "for other readers"


def test_what_is_no_result_is_refused(tmp_path):
    result.save(resulting(made()), tmp_path / "a.json")
    whole = (tmp_path / "a.json").read_text()
    other = whole.replace('"schema": 1', '"schema": 99')
    for text, said in (("", "no result"), ("{}", "no result"), (whole[:-9], "no result"), (other, "schema 99, this")):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(InputError, match=rf"a\.json .*{said}"):
            result.load(tmp_path / "a.json")
    with pytest.raises(InputError, match="cannot be read"):
        result.load(tmp_path / "none.json")


def test_a_table_for_other_programs(tmp_path):
    result.save_csv(resulting(made(amount=22.0, unit="token"), made(seconds=(), absent="gone")), tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["samples"] for row in rows] == ["3", "0"] and rows[1]["absent"] == "gone"
    assert float(rows[0]["rate"]) == pytest.approx(20) and rows[0]["commit"] == "abc"


def test_ratios_are_of_turns():
    ours, theirs = made(seconds=(1.0, 2.0, 4.0)), made(seconds=(2.0, 4.0, 6.0), contender="other")
    assert result.ratio(theirs, ours) == (2.0, 1.5, 2.0)
    assert result.best([made(seconds=[0.1]), ours, made(seconds=[5, 5, 5])]) is ours, "one run alone tells little"


def test_the_environment_says_what_a_figure_depends_on():
    found = machine.environment()
    assert found["torch"] == torch.__version__ and found["threads"] == torch.get_num_threads()
    assert {"processor", "isa", "clock", "commit", "dirty", "busy", "triton", "ctranslate2", "time"} <= found.keys()
    assert "commit" in machine.described(found)


def test_how_busy_others_keep_the_machine(tmp_path, monkeypatch):
    """user, nice, system, idle, waiting for a disk, interrupts, stolen: 100 ticks pass, and 20 + 5 of them idle."""
    stat = tmp_path / "stat"
    stat.write_text("cpu  10 0 10 70 10 0 0 0 0 0\ncpu0 1 2 3")
    monkeypatch.setattr(machine.time, "sleep", lambda _: stat.write_text("cpu  60 0 10 90 15 5 0 20 0 0\n"))
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 4)
    assert machine.busy(stat) == 4 * 0.75
    assert machine.busy(tmp_path / "none") is None


def test_a_busy_machine_is_told(monkeypatch, capsys):
    monkeypatch.setattr(machine, "busy", lambda: 1.4)
    assert output.begin("ops", argparse.Namespace(json=None), CPU).environment["busy"] == 1.4
    assert "others keep 1.4 cores busy" in capsys.readouterr().err


def test_a_machine_that_became_busy_is_told_at_the_end(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(machine, "busy", lambda: 0.0)
    args = argparse.Namespace(json=tmp_path / "a.json", csv=None, check=False)
    found = output.begin("ops", args, CPU)
    found.rows.append(made())
    monkeypatch.setattr(machine, "busy", lambda: 1.4)
    assert output.end(found, args) == 0
    assert "warning: others kept 1.4 cores busy" in capsys.readouterr().out
    assert result.load(tmp_path / "a.json").busy == 1.4


def test_what_benchmarks_write_is_no_change(tmp_path, monkeypatch):
    def git(*words):
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    for name in ("bench/machine.py", "bench/results/a.json", "docs/report/index.html", "docs/page.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    git("init")
    git("add", ".")
    git("commit", "-m", "a")
    monkeypatch.setattr(machine, "git", git)
    (tmp_path / "bench/results/a.json").unlink()
    (tmp_path / "docs/report/index.html").write_text("2")
    assert machine.changes() == ""
    (tmp_path / "docs/page.md").write_text("2")
    assert machine.changes() == "M docs/page.md"


def test_work_of_unlike_amounts_is_compared_by_rate():
    less = made(contender="other", seconds=[1.0], amount=10, unit="sentence")
    more = made(seconds=[2.0], amount=100, unit="sentence")
    assert "| 0.20x |" in output.line(less, more)
    assert output.time_text(-0.0119) == "-11.9 ms"


def test_a_command_is_told_without_its_files(monkeypatch):
    words = [
        "bertgen",
        "bench",
        "ops",
        "--size",
        "small",
        "--json",
        "a/b.json",
        "--csv=a.csv",
        "--input",
        "a/texts.tsv",
    ]
    monkeypatch.setattr(sys, "argv", words)
    assert output.command("ops") == "bertgen bench ops --size small --input texts.tsv"
    monkeypatch.setattr(sys, "argv", ["overhead.py", "--repeats", "3"])
    assert output.command("overhead") == "python -m bertgen.bench.overhead --repeats 3"


# Comparison


def raced(**calls) -> Result:
    taken = clock.race({name: [call] for name, call in calls.items()}, CPU, seconds=0.02, least=9)
    return resulting(*(made(contender=name, seconds=times) for name, times in taken.items()))


def test_a_slowed_operator_is_flagged_and_the_same_twice_is_not(tmp_path, capsys):
    def sleep(seconds):
        return lambda: time.sleep(seconds)

    files = {name: tmp_path / f"{name}.json" for name in ("before", "again", "slowed")}
    for name, file in files.items():
        result.save(raced(bertgen=sleep(0.006 if name == "slowed" else 0.003), eager=sleep(0.003)), file)
    assert bench("compare", files["before"], files["again"]) == 0
    assert "no verdict; 2 of 2 within the spread" in capsys.readouterr().out
    assert bench("compare", files["before"], files["slowed"]) == 1
    assert "| bertgen |" in (said := capsys.readouterr().out) and "slower" in said
    assert bench("compare", files["slowed"], files["before"]) == 0
    assert "1 faster" in capsys.readouterr().out


def test_a_slower_machine_is_no_verdict():
    before = resulting(made(), made(contender="eager"))
    slower = resulting(*(dataclasses.replace(row, seconds=[2 * s for s in row.seconds]) for row in before.rows))
    assert [one.verdict for one in compare.compared(before, slower)] == ["", ""]
    changed = resulting(slower.rows[0], before.rows[1])
    assert [one.verdict for one in compare.compared(before, changed)] == ["slower", ""]
    touching = resulting(made(seconds=(1.14, 1.2, 1.3)), before.rows[1])
    assert [one.verdict for one in compare.compared(before, touching)] == ["", ""], "their middle halves touch"


def test_what_is_gone_or_wrong_is_a_verdict(tmp_path):
    before, gone = resulting(made()), resulting(made(seconds=(), absent="not installed"))
    wrong = resulting(made(seconds=(), wrong="token 3 differs"))
    assert [one.verdict for one in compare.compared(before, gone)] == ["gone"]
    assert [one.verdict for one in compare.compared(before, wrong)] == ["WRONG"]
    assert [one.verdict for one in compare.compared(gone, before)] == ["new"]
    for one, other in ((before, gone), (before, wrong)):
        result.save(one, tmp_path / "a.json")
        result.save(other, tmp_path / "b.json")
        assert bench("compare", tmp_path / "a.json", tmp_path / "b.json") == 1


# Floors


@pytest.mark.parametrize(
    ("seconds", "code", "said"), [((2.0,) * 3, 0, "ok "), ((1.2,) * 3, 1, "BELOW"), ((), 0, "open")]
)
def test_a_ratio_below_its_floor_fails(monkeypatch, tmp_path, capsys, seconds, code, said):
    monkeypatch.setattr(floors, "FLOORS", (floors.Floor("generate", "other", 1.5, {"beams": 4}),))
    row = made(contender="other", seconds=seconds, params={"model": "base", "beams": 4})
    result.save(resulting(made(seconds=(1.0,) * 3, params=row.params), row), tmp_path / "a.json")
    assert bench("check", tmp_path / "a.json") == code
    assert capsys.readouterr().out.startswith(said)


def test_a_check_that_checks_nothing_is_an_error(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(floors, "FLOORS", (floors.Floor("generate", "other", 1.5, device="cuda"),))
    result.save(resulting(made()), tmp_path / "a.json")
    assert bench("check", tmp_path / "a.json") == 2
    assert "nothing was checked" in capsys.readouterr().err
    monkeypatch.setattr(floors, "FLOORS", (floors.Floor("generate", "other", 1.5),))
    broken = resulting(made(seconds=(), wrong="token 3 differs"), made(contender="other"))
    assert check.report([broken]) == check.BELOW, "without a time of ours a floor is not reached"


@pytest.fixture
def doubtful(tmp_path):
    """Files of a result of a quiet machine, of one that others kept busy before or behind, and of one cut short."""

    def rows(ours=1.0):
        params = {"model": "base", "requests": "mixed", "beams": 4, "batch": 1}
        work = {"params": params, "amount": 10.0, "unit": "token"}
        return made(seconds=[ours * s for s in (1.0, 1.01, 1.02)], **work), made(
            "generate", "other", (48.0,) * 3, **work
        )

    kinds = {
        "quiet": resulting(*rows(), busy=0.1, busy_behind=0.2),
        "before": resulting(*rows(), busy=2.0, busy_behind=0.0),
        "behind": resulting(*rows(), busy=None, busy_behind=1.4),
        "slow": resulting(*rows(2.0), busy=0.7),
        "short": resulting(rows()[1]),
    }
    kinds["short"].warnings.append("stopped after 60 s, cases may be missing")
    for name, one in kinds.items():
        result.save(one, tmp_path / f"{name}.json")
    return {name: tmp_path / f"{name}.json" for name in kinds}


def test_warnings_are_a_part_of_the_result(doubtful, tmp_path):
    found = {name: result.load(path) for name, path in doubtful.items()}
    assert found["quiet"].doubts == [] and found["quiet"].busy is None
    assert found["before"].doubts == ["others kept 2.0 cores busy, times are too long"]
    assert found["behind"].doubts == ["others kept 1.4 cores busy, times are too long"]
    assert found["short"].doubts == ["stopped after 60 s, cases may be missing"]
    result.save_csv(found["short"], tmp_path / "short.csv")
    assert (tmp_path / "short.csv").read_text().count("stopped after 60 s") == len(found["short"].rows)


@pytest.mark.parametrize(("name", "code"), [("quiet", 0), ("before", 4), ("behind", 4), ("short", 4)])
def test_what_a_busy_machine_measured_is_not_judged(monkeypatch, doubtful, capsys, name, code):
    monkeypatch.setattr(floors, "FLOORS", (floors.Floor("generate", "other", 1.5, {"beams": 4}),))
    assert bench("check", doubtful[name]) == code == (check.NOT_JUDGED if code else 0)
    said = capsys.readouterr().out
    assert said.startswith("not judged generate, beams 4: " if code else "ok "), said
    if code and name != "short":
        assert "the machine was busy (others kept" in said


def test_a_ratio_below_its_floor_counts_beside_what_is_not_judged(monkeypatch, doubtful):
    monkeypatch.setattr(floors, "FLOORS", (floors.Floor("generate", "other", 50.0, {"beams": 4}),))
    assert bench("check", doubtful["before"]) == check.NOT_JUDGED
    assert bench("check", doubtful["before"], doubtful["quiet"]) == check.BELOW


def test_busy_and_short_runs_are_not_compared(doubtful, capsys):
    assert bench("compare", doubtful["quiet"], doubtful["slow"]) == check.NOT_JUDGED
    said = capsys.readouterr().out
    assert "NOT TO BE RELIED ON: others kept 0.7 cores busy" in said and "not judged" in said and "slower" not in said
    assert bench("compare", doubtful["quiet"], doubtful["short"]) == check.NOT_JUDGED
    said = capsys.readouterr().out
    assert "stopped after 60 s" in said and "gone" not in said
    assert bench("compare", doubtful["quiet"], doubtful["quiet"]) == 0


def test_the_page_and_its_pictures_say_what_is_not_to_be_relied_on(doubtful, tmp_path, monkeypatch):
    written, real = [], Figure.text

    def text(self, x, y, words, **how):
        written.extend([words] if words.startswith("NOT TO BE RELIED ON") else [])
        return real(self, x, y, words, **how)

    monkeypatch.setattr(Figure, "text", text)
    quiet = report.write([result.load(doubtful["quiet"])], tmp_path / "quiet").read_text()
    assert "Not to be relied on" not in quiet and 'class="wrong"' not in quiet and not written
    page = report.write([result.load(doubtful[name]) for name in ("before", "short")], tmp_path / "page").read_text()
    assert page.index("Not to be relied on") < page.index("Other engines run the same models"), "it comes first"
    pictures = page.count("<figure>")
    for doubt in ("others kept 2.0 cores busy, times are too long", "stopped after 60 s, cases may be missing"):
        assert page.count(doubt) == 1 + 1 + pictures + 1, "on top, beside the command, at each picture, at the figures"
        assert len(written) == pictures and all(doubt in " ".join(text.split()) for text in written)


def test_a_warning_is_over_the_picture_and_nothing_else_is(doubtful, tmp_path):
    drawn = [figures.drawn([result.load(doubtful[name])], tmp_path / name) for name in ("quiet", "before")]
    assert drawn[0].keys() == drawn[1].keys() == {"overview", "generation"}
    red = lambda image: ((image[..., 0] > 0.5) & (image[..., 1] < 0.1) & (image[..., 2] < 0.1)).sum()  # noqa: E731
    for picture in drawn[0]:
        quiet, busy = (matplotlib.image.imread(paths[picture]) for paths in drawn)
        assert busy.shape[0] > quiet.shape[0] and abs(busy.shape[1] - quiet.shape[1]) < 40, picture
        assert red(busy) > 200 and red(quiet) == 0, picture


@pytest.mark.parametrize("kept", [True, False])
def test_a_step_that_is_stopped_or_fails_is_on_the_page(monkeypatch, tmp_path, kept):
    """Also where it was stopped before it had written anything."""

    def within(seconds, command):
        name = Path(command[-1])
        if "train" in name.name and kept:
            result.save(resulting(made("train", params={"model": "base", "batch": 8})), name)
        if "scale" in name.name:
            return 1
        if "train" in name.name:
            return None
        params = {"model": "base", "requests": "mixed", "beams": 4}
        result.save(resulting(made(params=params, amount=10.0, unit="token")), name)
        return 0

    monkeypatch.setattr(suite, "within", within)
    assert bench("suite", "--level", "quick", "--output", tmp_path, "--only", "generate", "scale", "train") == 1
    page = (tmp_path / "index.html").read_text()
    missing = "cases may be missing" if kept else "all its cases are missing"
    assert f": stopped after 60 s, {missing}" in page and ": failed, all its cases are missing" in page
    assert result.load(tmp_path / "train-cpu.json").warnings == [f"stopped after 60 s, {missing}"]
    assert bench("report", *tmp_path.glob("*.json"), "--output", tmp_path / "again") == 0
    assert "stopped after 60 s" in (tmp_path / "again/index.html").read_text(), "the files know it"


def test_tables_are_not_made_of_what_is_not_to_be_relied_on(doubtful, monkeypatch):
    monkeypatch.setattr(tables, "RESULTS", doubtful["quiet"].parent)
    for path in doubtful.values():
        path.rename(path.with_name(f"{path.stem}-cpu.json"))
    said = tables.filled("<!-- bench: readme -->\n<!-- end -->")
    assert "No figures yet: bench/results/before-cpu.json is not to be relied on (others kept 2.0 cores busy" in said


def test_the_committed_results_reach_the_floors():
    found = [result.load(path) for path in sorted(tables.RESULTS.glob("*-cpu.json"))]
    assert floors.FLOORS and check.report(found) == 0
    assert [one.doubts for one in found] == [[]] * len(found)
    for floor in floors.FLOORS:
        assert any(check.matching(floor, one.rows, floor.ours) for one in found), f"{floor} holds for nothing"


# Operators


def smoke_shapes(only: str) -> list[shapes.Shape]:
    with torch.no_grad():
        return list(shapes.shapes("smoke", CPU, torch.float32, only))


def test_operators_beside_others(tmp_path, capsys):
    arguments = "--size smoke --seconds 0.001 --no-compile --cases core".split()
    assert bench("ops", *arguments, "--json", tmp_path / "a.json", "--csv", tmp_path / "a.csv") == 0
    found = result.load(tmp_path / "a.json")
    named = {row.name for row in found.rows if row.seconds and row.ours}
    assert named >= {"attention", "beam_reorder", "decode_attention", "linear", "add_layer_norm", "int4_matmul"}
    assert "encoder" in named
    assert not found.wrong and {row.name for row in found.rows} >= set(ops.CHECKS)
    liger = next(row for row in found.rows if row.contender == "liger")
    assert "liger_kernel" in liger.absent and not liger.seconds
    assert "missing: liger" in capsys.readouterr().out
    compiled = [row for row in found.rows if row.contender == "compiled"]
    assert len(compiled) > 5 and {row.absent for row in compiled} == {"--no-compile"}
    timed = [row for row in found.rows if row.seconds and "flop" in row.extra]
    assert all(row.fraction > 0 and row.quartiles[0] <= row.median <= row.quartiles[1] for row in timed)


@pytest.mark.long
def test_torch_compile_beside_all_that_it_can_take():
    with torch.no_grad():
        rows = [row for shape in smoke_shapes(None) for row in ops.of_shape(shape, CPU, machine.limits(), 0.001)]
    rows = [row for row in rows if row.contender == "compiled"]
    assert all(row.seconds for row in rows) and {row.name for row in rows} == set(shapes.MAKERS) - {"beam_reorder"}


def test_a_product_of_integers_is_compared_with_its_own_definition():
    by_integers = [shape for shape in smoke_shapes("int4_matmul") if "integers" in shape.params]
    assert len(by_integers) == len(shapes.SIZES["smoke"].int4_rows)
    for shape in by_integers:
        floats = {name: value for name, value in shape.arguments.items() if name != "int8"}
        apart = shape.reference(**shape.arguments) - shape.reference(**floats)
        assert apart.abs().max() > 1e-3, "x is rounded"
        rows = {row.contender: row for row in ops.of_shape(shape, CPU, machine.limits(), 0.001)}
        assert rows["bertgen"].correct.startswith("within") and rows["bertgen"].seconds


def test_a_whole_encoder_is_what_transformers_computes():
    full, filled = smoke_shapes("encoder")
    assert filled.flop < full.flop and filled.params["fill"] == 0.6
    for shape in (full, filled):
        rows = {row.contender: row for row in ops.of_shape(shape, CPU, machine.limits(), 0.001, compile=False)}
        assert all(rows[name].correct.startswith("within") for name in ("eager", "sdpa", "bertgen"))
    inside = filled.arguments["inside"]
    moved = {**filled.arguments, "inside": inside.flip(1)}  # the same tokens at other positions
    assert not torch.allclose(filled.reference(**moved), filled.reference(**filled.arguments), atol=1e-2)


def test_a_wrong_answer_has_no_time(monkeypatch, capsys):
    (shape,) = smoke_shapes("bias_gelu")
    wrong = shapes.Contender(lambda x, bias: lambda: torch.nn.functional.gelu(x + bias) + 1e-3)
    shape = dataclasses.replace(shape, contenders={**shape.contenders, "bertgen": wrong, "other": wrong})
    monkeypatch.setattr(ops, "shapes", lambda *_: iter([shape]))
    assert bench("ops", "--size", "smoke", "--seconds", "0.001", "--cases", "none", "--no-compile") == 1
    printed, said = capsys.readouterr()
    (line,) = [line for line in printed.splitlines() if "| bertgen |" in line]
    assert "WRONG: error 0.001" in line and "us" not in line and "wrong: bias_gelu" in said
    (line,) = [line for line in printed.splitlines() if "| other |" in line]
    assert "its answer is not accepted: error 0.001" in line


def test_others_may_round_more_but_not_be_wrong():
    (shape,) = smoke_shapes("bias_gelu")
    made = {
        off: shapes.Contender(lambda x, bias, off=off: lambda: torch.nn.functional.gelu(x + bias) * (1 + off))
        for off in (1e-6, 1e-4)
    }
    contenders = {"eager": shape.contenders["eager"], "near": made[1e-6], "far": made[1e-4]}
    rows = ops.of_shape(dataclasses.replace(shape, contenders=contenders), CPU, machine.limits(), 0.001)
    near, far = rows[1:]
    assert near.seconds and near.correct.startswith("rounds more") and not far.seconds and "not accepted" in far.absent
    ours = ops.of_shape(dataclasses.replace(shape, contenders={"bertgen": made[1e-6]}), CPU, machine.limits(), 0.001)
    assert ours[0].wrong and not ours[0].seconds, "bertgen itself may not"


@pytest.mark.parametrize("words", ["--op lienar", "--no-compile lienar"])
def test_an_unknown_operator_is_refused(words, capsys):
    with pytest.raises(SystemExit, match="2"):
        bench("ops", "--size", "smoke", *words.split())
    assert "'lienar' (choose from" in capsys.readouterr().err


def test_a_run_that_measures_nothing_fails(capsys):
    assert bench("ops", "--op", "process", "--cases", "none") == 1
    assert "nothing was measured" in capsys.readouterr().err


def test_each_shape_is_of_the_operator_it_is_made_for():
    for name in shapes.MAKERS:
        assert {shape.op for shape in smoke_shapes(name)} == {name}


def test_an_operator_that_cannot_run_fails_the_run(monkeypatch):
    (shape,) = smoke_shapes("bias_gelu")

    def broken(**_):
        raise RuntimeError("no such kernel")

    broken_shape = dataclasses.replace(shape, contenders={**shape.contenders, "bertgen": shapes.Contender(broken)})
    rows = {row.contender: row for row in ops.of_shape(broken_shape, CPU, machine.limits(), 0.001, compile=False)}
    assert rows["bertgen"].wrong == "RuntimeError: no such kernel" and rows["eager"].seconds


def test_a_product_is_limited_by_bytes_or_by_arithmetic():
    flop = shapes._work(4, 1024, 512, torch.float32), shapes._work(4, 1024, 512, torch.float32, bits=4)
    assert flop[0] == (4 * (1024 * 512 + 4 * 1536), 2.0 * 4 * 1024 * 512)
    assert flop[1][0] == 1024 * 512 / 2 + 4 * 4 * 1536
    (shape,) = smoke_shapes("linear")
    (row, *_) = ops.of_shape(shape, CPU, {"B": 1e3, "FLOP": 1e12}, 0.001, compile=False)
    assert (row.unit, row.amount, row.limit) == ("B", shape.bytes, 1e3)
    (row, *_) = ops.of_shape(shape, CPU, {"B": 1e12, "FLOP": 1e3}, 0.001, compile=False)
    assert (row.unit, row.amount, row.limit) == ("FLOP", shape.flop, 1e3)


# Generation


def test_a_run(generated, capsys):
    code, found = generated()
    assert code == 0 and found.environment["commit"] is not None
    rows = [row for row in found.rows if row.seconds]
    assert {row.params["beams"] for row in rows} == {1, 4} and {row.params["batch"] for row in rows} == {2}
    for row in rows:
        assert row.extra["equal"] == row.extra["compared"] == 3 and row.limit > 0
        assert row.amount == 3 * 32 and row.unit == "token" and row.extra["request_p50"] <= row.median
        told = row.extra["token_p50"], row.extra["token_p99"]
        if row.contender == "CTranslate2" and row.params["beams"] > 1:
            assert told == (None, None)
        else:
            assert 0 < told[0] <= told[1]
    assert capsys.readouterr().out.count("3 of 3 equal") >= 4


def test_latencies_of_known_steps():
    class Slow(contenders.Contender):
        def run(self, sources, lengths, beams, batch):
            for numbers in contenders.batches(list(range(len(sources))), batch, sources):
                self.begin()
                since = self.marks[-1][0]
                for _ in range(max(lengths[i] for i in numbers)):
                    time.sleep(0.005)
                    self.step()
                self.end(numbers, since)
            return [[7] * n for n in lengths]

    run = Slow().measured([[7], [8]], [4, 4], 1, 1)
    assert len(run.gaps) == 2 * 3 and all(0.005 <= gap < 0.02 for gap in run.gaps), "the first token has no gap"
    assert len(run.requests) == 2 and all(0.02 <= spent < 0.05 for spent in run.requests)
    assert 0.04 <= run.seconds < 0.1 and 0 < run.loaded <= run.peak
    told = generate.told([run, run._replace(gaps=[9.0])])
    assert told["token_p99"] == 9.0 and told["token_p50"] < 0.02


def test_an_engine_in_a_process_of_its_own():
    given = [[7, 8, 9], [9, 10]], [3, 4], 1, 2
    apart = contenders.Apart(contenders.Bertgen, SMOKE)
    assert apart.run(*given) == contenders.make(contenders.Bertgen, SMOKE).run(*given)
    run = apart.measured(*given)
    assert run.tokens == apart.run(*given) and run.peak != contenders.memory.peak(CPU), "the memory is that process's"
    apart.close()


def test_runs_that_compile_do_not_count(monkeypatch):
    """They go on until one adds no graph; a setting that was run before needs none."""
    from torch._dynamo.utils import counters

    engine, graphs, ran = object.__new__(contenders.StaticBart), iter([3, 2, 0]), []
    engine._compiled = set()

    def run(*setting):
        counters["stats"]["unique_graphs"] += next(graphs)
        ran.append(setting)

    monkeypatch.setattr(engine, "run", run)
    for _ in range(2):
        engine.warm([[5], [6]], [3, 4], 1, 2)
    assert ran == [([[5], [6]], [3, 4], 1, 2)] * 3


def test_batches_of_the_compiled_model_have_one_number_of_rows(monkeypatch):
    """That of the largest batch of the run, and not of a run before."""
    engine, shapes_run = object.__new__(contenders.StaticBart), []

    def generate(filled, limits, beams, tokens, **_):
        shapes_run.append((len(filled), len(filled[0]), len(limits), tokens))
        return [[0] * (tokens + 1)] * len(filled)

    monkeypatch.setattr(engine, "_generate", generate)
    for batch in (2, 1):
        assert len(engine.run([[5], [6, 7], [8]], [3, 4, 2], 1, batch)) == 3
    assert shapes_run == [(2, 32, 2, 4)] * 2 + [(1, 32, 1, 4)] * 3


@pytest.mark.parametrize("name", ["Bertgen", "Transformers"])
def test_a_wrong_token_fails_the_run(generated, monkeypatch, capsys, name):
    kind = getattr(contenders, name)
    right = kind.run

    def wrong(self, sources, *arguments):
        found = right(self, sources, *arguments)
        found[-1][-1] ^= 1
        return found

    monkeypatch.setattr(kind, "run", wrong)
    code, found = generated("--beams", 1)
    rows = [row for row in found.rows if row.contender == "transformers sdpa"]
    assert code == 1 and all(row.wrong and not row.seconds for row in rows)
    printed, said = capsys.readouterr()
    assert "request 2 differs at token 31, margin " in said
    assert all("WRONG" in line for line in printed.splitlines() if "| transformers sdpa |" in line)


def test_one_wrong_turn_takes_all_times(generated, monkeypatch):
    right, runs = contenders.Transformers.run, []

    def sometimes(self, sources, lengths, *arguments):
        found = right(self, sources, lengths, *arguments)
        runs.append(max(lengths))
        if runs.count(32) == 2 and runs[-1] == 32:
            found[-1][-1] ^= 1
        return found

    monkeypatch.setattr(contenders.Transformers, "run", sometimes)
    code, found = generated("--beams", 1, "--repeats", 3)
    (row,) = [row for row in found.rows if row.contender == "transformers sdpa"]
    assert runs.count(32) == 3, "three turns"
    assert code == 1 and row.wrong and not row.seconds


def test_an_output_that_stops_early_is_wrong(generated, monkeypatch, capsys):
    kind = contenders.Transformers
    right = kind.run
    monkeypatch.setattr(kind, "run", lambda self, *arguments: [ids[:-1] for ids in right(self, *arguments)])
    assert generated("--beams", 1)[0] == 1
    assert "request 0 stopped after 32 and 31 tokens of 32" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("package", "name"), [("transformers", "transformers sdpa"), ("ctranslate2.converters", "CTranslate2")]
)
def test_a_missing_engine_is_said_to_be_missing(generated, monkeypatch, capsys, package, name):
    monkeypatch.setitem(sys.modules, package, None)
    code, found = generated("--beams", 1)
    assert code == 0
    (row,) = [row for row in found.rows if row.contender == name]
    assert "the comparison needs a package that cannot be imported" in row.absent and not row.seconds
    printed = capsys.readouterr().out
    assert f"| {name} | missing: " in printed and f"missing: {name}: the comparison" in printed.replace(
        ", CTr", ": CTr"
    )
    assert name in report.faults([found])


def test_given_weights_and_texts(tmp_path):
    (tmp_path / "a.txt").write_text("Where is the station?\nHelp!\n")
    arguments = "--requests 2 --batches 2 --repeats 1 --only mixed --beams 1 --same-process --no-load".split()
    words = [*arguments, "--engines", "bertgen", "--input", tmp_path / "a.txt", "--json", tmp_path / "a.json"]
    assert bench("generate", "--model", "demo", *words) == 0
    (row,) = [row for row in result.load(tmp_path / "a.json").rows if row.seconds]
    assert row.params["model"] == "demo" and row.params["requests"] == "mixed" and row.amount < 30
    assert bench("generate", "--model", "demo", *words, "--input", tmp_path / "none.txt") == 2
    assert workload.size_of("demo") == workload.SIZES["demo"]
    with pytest.raises(ConfigError, match="--requests must be at least 1, got 0"):
        generate.run(generate_arguments("--requests", "0"))


@pytest.mark.parametrize(
    "name, content, error, said",
    [
        ("a.tsv", b"\x1f\x8b\x08", InputError, "a.tsv is compressed by gzip"),
        ("a.csv", b"one,two\n", ConfigError, "a.csv: .csv is not read here, but tsv and text are"),
        ("a.txt", b"one\n\xff\n", InputError, "a.txt, line 2: not UTF-8"),
    ],
)
def test_texts_that_are_no_texts(tmp_path, name, content, error, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=said):
        workload.texts(tmp_path / name, 2, 500)


def generate_arguments(*words: str):
    import argparse

    parser = argparse.ArgumentParser()
    generate.add_arguments(parser)
    return parser.parse_args(words)


def test_batches_of_requests_and_of_tokens():
    sources = [[7] * n for n in (1, 2, 3, 8)]
    assert list(contenders.batches([0, 1, 2, 3], 3, sources)) == [[3, 2, 1], [0]]
    assert list(contenders.batches([0, 1, 2, 3], workload.Budget(9), sources)) == [[3], [2, 1, 0]], "padding counts"
    assert list(contenders.batches([3], workload.Budget(2), sources)) == [[3]], "one is always taken"


@pytest.mark.parametrize("beams", [1, 4])
def test_a_difference_is_excused_at_a_tie_only(beams):
    """The judge's own search is asked where outputs differ; its margins are those of our logits."""
    model = SMOKE.build()
    case = workload.Case("fixed", beams, [[7, 8, 9]], [6])
    (ours,) = contenders.Bertgen(model).run(case.sources, case.lengths, beams, 1)
    other = [*ours[:4], ours[4] ^ 1, ours[5]]
    margins = agreement.margins(model, case.sources[0], 6, beams)
    assert len(margins) == 6 + (beams > 1) and all(margin > -1e-3 for margin in margins)
    judge = agreement.Judge(model)
    assert judge.compare(case, [ours], [[*ours, 99][: 6 + (beams == 1)]]) == agreement.Agreement(1, 1)
    assert len(judge.compare(case, [ours], [other]).wrong) == 1
    unjudged = judge.compare(case, [ours], [other], judged=False)
    assert (unjudged.compared, unjudged.equal, unjudged.wrong) == (1, 0, []), "rounded weights may differ"
    judge.tie = margins[4] + 1e-6 if beams == 1 else min(margins) + 1e-6
    found = judge.compare(case, [ours], [other])
    assert (found.compared, found.equal, len(found.ties), found.wrong) == (1, 0, 1, [])


def test_outputs_of_beams_that_end_elsewhere_are_not_compared():
    case = workload.Case("mixed", 4, [[7], [8]], [2, 3])
    judge = agreement.Judge(SMOKE.build())
    assert judge.compare(case, [[5, 6], [5, 6, 7]], [[8, 9, 9], [5, 6, 7]]) == agreement.Agreement(1, 1)


def test_what_limits_a_case():
    size = workload.Size(hidden=2, layers=3, intermediate=5, heads=1, vocabulary=11)
    source, out = 3 * (4 * 4 + 2 * 2 * 5 + 2 * 4), 3 * (4 * 4 + 2 * 2 * 5 + 2 * 4) + 11 * 2
    case = workload.Case("mixed", 4, [[7] * 10, [7] * 20], [6, 9])
    assert case.flop(size) == 2 * (30 * source + 15 * 4 * out)
    assert case.limit(size, 100.0, 1e30) == case.flop(size) / 100
    assert case.limit(size, 1e30, 10.0) == 9 * 4 * out / 10, "the steps of the longest"
    assert case.limit(size, 1e30, 10.0, item=2) == 9 * 2 * out / 10
    assert case._replace(kind="single").limit(size, 1e30, 10.0) == 15 * 4 * out / 10


# Growth, training, overhead


def test_a_line_through_points_on_a_line():
    line = scale.fitted([(x, 0.5 + 0.25 * x) for x in (1, 2, 8, 32)])
    assert line == pytest.approx((0.5, 0.25, 0.0), abs=1e-9)
    assert scale.fitted([(1, 1.0), (2, 2.0), (4, 16.0)]).error > 0.5, "a curve is no line, and that is said"


def test_one_thing_is_varied_at_a_time():
    points = scale.by_layers(["batch", "layers"], 4, own=6)
    assert list(points) == [1, 2, 4, 6]
    assert [point["batch"] for axis, point in points[6]] == [1, 2, 4] and points[1] == [("layers", scale.POINT)]
    case = scale.made({**scale.POINT, "source": 300, "batch": 3}, 500)
    assert [len(ids) for ids in case.sources] == [300] * 3 and case.sources[0] != case.sources[1]


def test_values_along_an_axis_take_turns(monkeypatch):
    asked = []
    turn = generate.Race.turn
    monkeypatch.setattr(generate.Race, "turn", lambda race, sizes: asked.append(sizes) or turn(race, sizes))
    few = "--size smoke --axes batch --most 2 --repeats 2 --same-process --engines bertgen".split()
    assert bench("scale", *few) == 0
    assert asked == [[1], [2], [1], [2]]


class Local:
    """What a child is, in this process."""

    def __init__(self, make, *arguments):
        self.made = make(*arguments)

    def call(self, method, *arguments):
        return getattr(self.made, method)(*arguments)

    def close(self):
        pass


@pytest.mark.long
def test_a_training_step(monkeypatch):
    monkeypatch.setattr(train, "Child", Local)
    rows = train.compared("smoke", SMOKE, [[7, 8, 9], [10]], [[11, 12], [13]], steps=2)
    assert [row.contender for row in rows] == list(train.ENGINES) and all(len(row.seconds) == 2 for row in rows)
    assert rows[0].amount == 7 and all("gradient equal" in row.correct for row in rows)
    right = train.Trainer.checked

    def other(self):
        loss, norm = right(self)
        return loss * (1.001 if type(self.model).__module__.startswith("transformers") else 1), norm

    monkeypatch.setattr(train.Trainer, "checked", other)
    rows = train.compared("smoke", SMOKE, [[7, 8, 9]], [[11, 12]], steps=2)
    assert rows[0].seconds and all(row.wrong and not row.seconds for row in rows[1:])


@pytest.mark.parametrize("operator", ["add_", "_foreach_add_"])
def test_a_recording_is_replayed_from_the_same_state(operator):
    """A step that counts up in place, a tensor or a list of them: replays would run away with its index."""
    table, place = torch.arange(4), torch.zeros((), dtype=torch.int64)

    def run(steps):
        for _ in range(steps):
            place.add_(1) if operator == "add_" else torch._foreach_add_([place], 1)
            table[place]

    recording = overhead.Recording(run, 3)
    assert int(place) == 3 and [call[0].overloadpacket.__name__ for call in recording.calls].count(operator) == 3
    for _ in range(3):
        assert recording.replayed() > 0 and int(place) == 3


# The suite, the report, the tables


def test_a_step_of_the_suite_that_takes_too_long_is_stopped(tmp_path):
    """And with it what it has started, so that nothing goes on in the background of the next step."""
    start = time.monotonic()
    inner = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    assert suite.within(3.0, [sys.executable, "-c", outer]) is None
    assert time.monotonic() - start < suite.PATIENCE
    for _ in range(100):
        try:
            os.kill(int((tmp_path / "pid").read_text()), 0)
        except ProcessLookupError:
            break
        time.sleep(0.05)
    else:
        pytest.fail("what the step had started is still there")
    assert suite.within(60, [sys.executable, "-c", "raise SystemExit(3)"]) == 3


def test_the_time_of_a_quick_suite_is_bounded():
    assert sum(step.seconds for step in suite.LEVELS["quick", "cpu"]) < 600
    assert sum(step.seconds for step in suite.LEVELS["quick", "cuda"]) + suite.PATIENCE < 540
    assert bench("suite", "--level", "full", "--device", "cuda", "--output", "nowhere") == 2


@pytest.mark.parametrize(("level", "device"), suite.LEVELS)
def test_the_words_of_the_suite_are_taken(level, device, monkeypatch, tmp_path):
    """Every step of every level is parsed by the command it names."""
    import shlex

    asked = []
    for step in suite.LEVELS[level, device]:
        monkeypatch.setattr(
            getattr(sys.modules["bertgen.bench"], step.part), "run", lambda args: asked.append(args) or 0
        )
        assert main(["bench", *shlex.split(step.words), "--device", device, "--json", str(tmp_path / "a.json")]) == 0
    assert len(asked) == len(suite.LEVELS[level, device])
    assert all(args.json and args.device == device for args in asked)


def test_a_run_that_is_stopped_keeps_what_it_has(tmp_path):
    path = tmp_path / "a.json"
    found = resulting()
    found.path = path
    output.add(found, [made()])
    assert result.load(path).rows == [made()]


def test_the_report_is_one_page_with_pictures(tmp_path, capsys):
    def rows(name, contender, factor, **more):
        seconds = [factor * s for s in (1.0, 1.1, 1.2)]
        return made(name, contender, seconds, amount=10.0, unit="token", limit=100.0, **more)

    several = []
    for contender, factor in (("bertgen", 1.0), ("transformers <sdpa>", 2.0)):
        for batch in (1, 4):
            params = {"model": "base", "requests": "mixed", "beams": 4, "count": 8, "batch": batch}
            extra = {"token_p50": 0.01 * factor, "token_p99": 0.02 * factor, "peak": 2 * 10**9}
            several.append(rows("generate", contender, factor, params=params, extra=extra))
            params = {"axis": "batch", "batch": batch}
            several.append(rows("scale", contender, factor * batch, params=params))
        several.append(rows("train", contender, factor, params={"model": "base", "batch": 8}, extra={"peak": 10**9}))
    for contender, factor in (("bertgen", 1.0), ("eager", 2.0), ("compiled", 1.5)):
        extra = {"flop": 1e9, "bytes": 1e8}
        several.append(rows("linear", contender, factor, params={"rows": 4, "n": 8, "k": 8}, extra=extra))
    several.append(made(contender="CTranslate2", seconds=(), absent="not installed"))
    several.append(made(contender="other", seconds=(), wrong="token 3 differs"))
    result.save(dataclasses.replace(resulting(*several), part="ops"), tmp_path / "a.json")
    assert bench("report", tmp_path / "a.json", "--output", tmp_path / "page") == 0
    page = (tmp_path / "page/index.html").read_text()
    assert capsys.readouterr().out.strip() == str(tmp_path / "page/index.html")
    pictures = {path.stem for path in (tmp_path / "page").glob("*.png")}
    assert pictures == set(figures.FIGURES) == set(report.CAPTIONS)
    assert page.count('src="data:image/png;base64,') == len(pictures) and 'src="' not in page.replace('src="data:', "")
    assert "<sdpa>" not in page and "&lt;sdpa&gt;" in page
    assert "CTranslate2: not installed" in page and "token 3 differs" in page


def test_a_picture_has_one_point_for_a_batch():
    """Of two the one with more turns, of equal ones the faster."""
    params = {"model": "base", "requests": "fixed", "beams": 1}
    rows = [
        made(params={**params, "batch": batch, "count": count}, seconds=seconds, amount=12.0, unit="token")
        for batch, count, seconds in ((1, 8, [6.0]), (4, 8, [1.0]), (4, 16, [3.0, 3.0]), (4, 17, [4.0, 4.0]))
    ]
    (line,) = figures.batches(rows, []).axes[0].lines
    assert list(line.get_xdata()) == [1, 4] and list(line.get_ydata()) == [2.0, 4.0]


def test_a_report_of_nothing_to_draw(tmp_path):
    result.save(resulting(made(seconds=(), absent="not installed")), tmp_path / "a.json")
    assert bench("report", tmp_path / "a.json", "--output", tmp_path / "page") == 0
    assert not list((tmp_path / "page").glob("*.png")) and "not installed" in (tmp_path / "page/index.html").read_text()


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda path: path.name)
def test_the_tables_are_what_the_committed_results_give(page):
    text = page.read_text(encoding="utf-8")
    assert tables.BLOCK.search(text) and tables.filled(text) == text, "python -m bertgen.bench.tables"
    assert re.search(r"^`.*`: .*commit \w+\.$", text, re.MULTILINE), "command, device and commit"


def test_the_picture_of_the_readme_has_the_figures_of_its_table():
    found = tables.results("generate", figures.MODEL)
    (axes,) = figures.overview(tables.rows_of(found), found).axes
    drawn = sorted(text.get_text().removesuffix("x") for text in axes.texts)
    cells = [
        line.strip("| ").split(" | ")[1:]
        for line in tables.readme().splitlines()
        if "greedy" in line or "beams" in line
    ]
    assert len(cells) == 6 and drawn == sorted(cell for row in cells for cell in row)


def test_one_command_takes_all_committed_results_anew():
    """`make figures` removes them first."""
    (recipe,) = re.findall(r"^figures:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    made = {f"{step.name}-cpu.json" for step in suite.LEVELS["full", "cpu"]}
    made |= set(re.findall(r"[\w-]+-cpu\.json", recipe))
    assert {path.name for path in (ROOT / "bench/results").glob("*-cpu.json")} <= made


def test_every_part_is_a_command(capsys):
    from bertgen.cli.bench import PARTS

    for part in PARTS:
        with pytest.raises(SystemExit, match="0"):
            bench(part, "--help")
        assert "example:" in capsys.readouterr().out


@pytest.mark.long
def test_the_smoke_suite(tmp_path):
    assert bench("suite", "--level", "smoke", "--output", tmp_path) == 0
    assert {path.name for path in tmp_path.glob("*.json")} == {
        f"{part}-cpu.json" for part in ("ops", "generate", "scale", "train")
    }
    assert (tmp_path / "index.html").exists() and (tmp_path / "roofline.png").exists()


@pytest.mark.long
def test_all_engines_and_loading(tmp_path):
    """The compiled one and those with rounded weights, too, each in a process of its own."""
    words = "--size smoke --requests 2 --repeats 1 --batches 2 --only fixed".split()
    code = bench("generate", *words, "--engines", "all", "--json", tmp_path / "a.json")
    found = result.load(tmp_path / "a.json")
    assert code == 0
    assert {row.contender for row in found.rows if row.seconds and row.name == "load"} == set(generate.ENGINES)
    assert {row.contender for row in found.rows if row.seconds and row.name == "generate"} == set(generate.ENGINES)


@pytest.mark.long
def test_entry_points_of_pytest_benchmark(tmp_path):
    command = [sys.executable, "-m", "pytest", "bench", "--benchmark-only", "-p", "no:cacheprovider", "-k",
               "decode_attention and lengths and not cross", f"--benchmark-json={tmp_path / 'a.json'}"]  # fmt: skip
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}  # of these tests
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=own)
    assert done.returncode == 0, done.stdout
    timed = json.loads((tmp_path / "a.json").read_text())["benchmarks"]
    assert {one["extra_info"]["contender"] for one in timed} == {"eager", "bertgen"}


@pytest.mark.long
def test_overhead_of_a_step(tmp_path):
    module("overhead", "--repeats", 1, "--json", tmp_path / "a.json")
    steps = {(row.contender, row.params["beams"]): row for row in result.load(tmp_path / "a.json").rows}
    assert len(steps) == 6 and all(row.extra["calls"] > 0 and row.extra["operators"] > 0 for row in steps.values())


@pytest.mark.long
def test_tokenizer_beside_transformers(tmp_path):
    (tmp_path / "texts.tsv").write_text("Where is the station?\tx\nI have lost my key.\ty\n" * 50)
    assert "100 sentences" in module("tokenizer", "--input", tmp_path / "texts.tsv", "--repeats", 1)


@pytest.mark.long
@pytest.mark.skipif(not extension.available(), reason=f"no C++ extension: {extension.why_not()}")
def test_the_allocator():
    assert "allocator, 64 rows" in module("allocator", "--rows", 64)


@pytest.mark.long
@pytest.mark.skipif(not extension.available(), reason=f"no C++ extension: {extension.why_not()}")
def test_4_bit_products_and_decoding():
    few = ("--repeats", 1, "--rows", 1, 5, "--shapes", 64, 128, "--size", "smoke", "--tokens", 5)
    printed = module("int4", *few)
    assert "| 64 x 128 |" in printed
    rows = [line.split(" |")[0] for line in printed.splitlines() if "x (" in line]
    integers = ["| int4, integers, output layer too", "| int4, integers"]
    assert rows[:5] == [*integers, "| int4, output layer too", "| int4", "| float32"]
    assert rows[5:] == ["| CTranslate2 int8", "| CTranslate2 float32"] or "CTranslate2 is missing" in printed


@pytest.mark.long
def test_weights_in_4_bits_beside_floats(tmp_path):
    (tmp_path / "pairs.tsv").write_text("Where is the station?\tWo ist der Bahnhof?\nHelp!\tHilfe!\n" * 2)
    files = ("--data", tmp_path / "pairs.tsv", "--repeats", 1, "--num-beams", 1)
    rows = [line.split(" | ") for line in module("quantization", "models", *files).splitlines()[2:]]
    formats = ["int4", "int4, integers", "NF4"]
    expected = ["float32", "float16", *formats, *(f"{one}, output layer too" for one in formats)]
    assert [row[0] for row in rows] == [f"| {one}" for one in expected]
    sizes = [float(row[1]) for row in rows]
    assert sizes[0] > sizes[1] > 8 > sizes[2] and all(float(cell) > 0 for row in rows for cell in row[2:4])
    assert "`decoder.bert.encoder.layer.*.intermediate.dense` | " in module("quantization", "layers")
