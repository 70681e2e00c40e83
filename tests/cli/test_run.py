"""`bertgen run`: texts, lines and files in, records out; its errors."""

import gzip
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

import bertgen
from bertgen import Generator, cli
from bertgen.cli import console
from bertgen.decoding import BeamSearch, Sampling
from bertgen.jobs import JobReport
from tests.support.checkpoints import sentence, translation
from tests.support.processes import start

# texts and lines


def test_texts_as_arguments(bertgen_run):
    assert bertgen_run("one two", "", "three\nfour") == (0, "eins zwei\n\ndrei vier\n", "")


def test_lines_of_stdin(bertgen_run, stdin):
    stdin(b"one two\r\n\nthree")
    assert bertgen_run() == (0, "eins zwei\n\ndrei\n", "")
    stdin(b"")
    assert bertgen_run() == (0, "", "")


def test_stdin_of_other_formats(bertgen_run, stdin):
    stdin(b'{"en": "one"}\n')
    assert bertgen_run("--format", "jsonl", "--field", "en")[1] == '{"en": "one", "output": "eins"}\n'
    stdin(b"1\tone\n")
    assert bertgen_run("--format", "tsv", "--column", 2)[1] == "1\tone\teins\n"


def test_terminal_gets_a_hint_and_an_answer_to_each_line(bertgen_run, stdin, monkeypatch):
    stdin(b"one\ntwo\n", terminal=True)
    sizes, stream = [], Generator.stream
    monkeypatch.setattr(Generator, "stream", lambda *a, **o: sizes.append(a[1]) or stream(*a, **o))
    code, out, err = bertgen_run()
    assert (code, out, sizes) == (0, "eins\nzwei\n", [[], ["one"], ["two"]])
    assert err == "bertgen: type a text and press Enter; Ctrl-D ends\n"


def test_input_file_to_stdout(bertgen_run, tmp_path):
    (tmp_path / "in.tsv").write_text("1\tone\n2\ttwo")
    assert bertgen_run("--input", tmp_path / "in.tsv", "--column", 2)[1] == "1\tone\teins\n2\ttwo\tzwei\n"


def test_options_reach_the_generator(bertgen_run, tiny_checkpoint, monkeypatch):
    """Every flag, as the option of that name; those not given are left to the model."""
    given = []
    stream = Generator.stream

    def record(self, texts, **options):
        if texts:  # the first call only checks the options
            assert (options.pop("first"), options.pop("lookahead"), options.pop("return_errors")) == (0, 1, True)
            given.append((self, options))
        return stream(self, texts, return_errors=True, **options)

    monkeypatch.setattr(Generator, "stream", record)
    flags = "--num-beams 4 --max-new-tokens 9 --min-length 3 --length-penalty 0.6 --early-stopping true --n-best 2 "
    flags += "--no-repeat-ngram-size 3 --repetition-penalty 1.2 --scores --max-rows 77 --truncate --dtype float16"
    assert bertgen_run("one", *flags.split())[0] == 0
    generator, options = given[0]
    assert options == dict(
        num_beams=4, max_new_tokens=9, min_length=3, length_penalty=0.6, early_stopping=True, num_return_sequences=2,
        no_repeat_ngram_size=3, repetition_penalty=1.2, scores=True,
    )  # fmt: skip
    assert (generator.engine.config.max_rows, generator.truncation, generator.model.dtype) == (77, True, torch.float16)
    bertgen_run("one", *"--do-sample --seed 5 --temperature 2 --top-k 5 --top-p 0.9 --max-length 7".split())
    sampled = dict(do_sample=True, seed=5, temperature=2.0, top_k=5, top_p=0.9, max_length=7)
    assert sampled.items() <= given[1][1].items()
    diverse = "--num-beams 4 --num-beam-groups 2 --diversity-penalty 0.5 --min-new-tokens 2 --no-repeat-ngram-size 0"
    assert bertgen_run("one", *diverse.split(), *"--encoder-no-repeat-ngram-size 3 --min-p 0.1".split())[0] == 0
    grouped = dict(
        num_beam_groups=2, diversity_penalty=0.5, min_new_tokens=2, encoder_no_repeat_ngram_size=3, min_p=0.1
    )
    assert grouped.items() <= given.pop()[1].items()
    bertgen_run("one")
    assert set(given[2][1]) == {"num_return_sequences", "scores"}
    for word, value in (("false", False), ("never", "never")):
        bertgen_run("one", "--num-beams", 2, "--early-stopping", word)
        assert given[-1][1]["early_stopping"] == value


def test_n_best_and_scores(bertgen_run, tiny_checkpoint):
    best = Generator(tiny_checkpoint).generate(["white"], num_beams=4, num_return_sequences=2)[0]
    code, out, _ = bertgen_run("white", "--num-beams", 4, "--n-best", 2, "--scores")
    assert (code, out) == (0, f"{best.score:.4f}\tweiß\t{best.alternatives[0].score:.4f}\thell\n")
    score, text = bertgen_run("one", "--scores")[1].rstrip("\n").split("\t")
    assert text == "eins" and re.fullmatch(r"-0\.\d{4}", score)


def test_tokenizer_from_elsewhere(bertgen_run, tiny_checkpoint, tmp_path):
    (tmp_path / "spiece.model").write_bytes((tiny_checkpoint / "spiece.model").read_bytes())
    assert bertgen_run("one", "--tokenizer", tmp_path, "--device", -1, "--task", "text2text-generation")[1] == "eins\n"


# files


def test_file_to_file(bertgen_run, tmp_path):
    r = random.Random(3)
    rows = [{"id": i, "en": sentence(r)} for i in range(100)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "out.jsonl"
    arguments = ("--input", tmp_path / "in.jsonl", "--output", output, "--field", "en", "--output-field", "de")
    code, out, err = bertgen_run(*arguments)
    assert (code, out) == (0, "")
    assert re.fullmatch(
        rf"bertgen: {output}: 100 lines, 0 failed, 0 truncated; \d+\.\d s, [\d.]+ lines/s, \d+ tokens/s\n", err
    )
    written = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["id"] for row in written] == list(range(100))
    assert sum(row["de"] == translation(row["en"]) for row in written) > 90
    assert bertgen_run(*arguments) == (2, "", f"bertgen: error: {output} is there already; --overwrite replaces it\n")
    assert bertgen_run(*arguments, "--overwrite", "--quiet") == (0, "", "")


def test_failed_lines_are_recorded_and_told(bertgen_run, tmp_path):
    (tmp_path / "in.txt").write_bytes(b"one\n" + b"\xff\n" * 25 + b"two\n" + b"three " * 60 + b"\n")
    arguments = ("--input", tmp_path / "in.txt", "--output", tmp_path / "out.txt")
    code, out, err = bertgen_run(*arguments, "--strict")
    assert (code, out) == (2, "")
    assert err.startswith("bertgen: error: ") and "in.txt, line 2: not UTF-8" in err and len(err.splitlines()) == 1
    assert not (tmp_path / "out.txt").exists()
    code, _, err = bertgen_run(*arguments, "--truncate")
    assert code == 1 and (tmp_path / "out.txt").read_text().startswith("eins\n" + "\n" * 25 + "zwei\ndrei ")
    lines = err.splitlines()
    assert (
        len(lines) == 22
        and "in.txt, line 2: not UTF-8" in lines[0]
        and lines[20] == "bertgen: ... and 6 more such lines"
    )
    assert "28 lines, 25 failed, 1 truncated" in lines[21]


def test_shards_and_statistics(bertgen_run, tiny_checkpoint, tmp_path):
    texts = ["one two", "", "three " * 60, "four", "five six seven", "eight", "nine"]
    (tmp_path / "in.txt").write_text("\n".join(texts))
    run = ("--input", tmp_path / "in.txt", "--window", 2)
    assert bertgen_run(*run, "--output", tmp_path / "whole.txt")[0] == 1
    found = []
    for i in range(3):
        shard = ("--output", tmp_path / f"out-{i}.txt", "--num-shards", 3, "--shard-index", i)
        code, out, err = bertgen_run(*run, *shard, "--stats", "-")
        found.append(json.loads(out))
        assert code == (i == 1) and ("in.txt, line 3: 60 tokens, the limit is 48" in err) == (i == 1)
    assert b"".join((tmp_path / f"out-{i}.txt").read_bytes() for i in range(3)) == (tmp_path / "whole.txt").read_bytes()
    generator = Generator(tiny_checkpoint)
    outputs = generator.generate([text if len(text) < 99 else "" for text in texts])
    ends = (0, 2, 4, 7)
    for i, stats in enumerate(found):
        part = outputs[ends[i] : ends[i + 1]]
        assert (stats["lines"], stats["failed"], stats["windows"]) == (len(part), i == 1, 2 if i == 2 else 1)
        assert stats["tokens_in"] == sum(output.input_tokens for output in part) > 0
        assert stats["tokens_out"] == sum(len(output.token_ids) for output in part) > 0
        assert (stats["first_line"], stats["resumed_at"], stats["device"]) == (ends[i] + 1, None, "cpu")
        assert stats["seconds"] == stats["seconds_total"] > 0 and 1e7 < stats["peak_memory"] < 1e11
        assert stats["versions"]["bertgen"] == bertgen.__version__


def test_progress_of_a_job_that_was_resumed_is_that_of_this_run(bertgen_run, tmp_path, monkeypatch):
    (tmp_path / "in.txt").write_text("one two\n" * 200)
    run = ("--input", tmp_path / "in.txt", "--output", tmp_path / "out.txt", "--window", 20)
    count, seen = JobReport.count, []

    def interrupt(report, *rest):
        count(report, *rest)
        if report.lines == 150:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(JobReport, "count", interrupt)
        assert bertgen_run(*run)[0] == 130
    update = console.Progress.update
    monkeypatch.setattr(console.Progress, "update", lambda bar, *a: seen.append((bar.total, *a)) or update(bar, *a))
    assert bertgen_run(*run)[0] == 0
    total, done, lines, tokens = seen[-1]
    assert (total, done, lines) == (480, 480, 60) and 60 < tokens < 60 * 6 and seen[0][1:3] == (8, 1)


def test_progress_bar_on_a_terminal(bertgen_run, tmp_path, monkeypatch):
    """Nothing of it where stderr is no terminal, with --quiet, or where the work is short."""
    (tmp_path / "in.txt").write_text("one two\n" * 200)
    arguments = ("--input", tmp_path / "in.txt", "--output", tmp_path / "out.txt", "--overwrite", "--max-rows", 300)
    monkeypatch.setattr(console, "BAR_SECONDS", 0.0)
    assert "%" not in bertgen_run(*arguments)[2]
    shown = {}

    def watch(self, done, lines, tokens):
        update(self, done, lines, tokens)
        if self.bar:
            shown.update(done=done, total=self.total, note=self.bar.tasks[0].fields["note"])

    update = console.Progress.update
    monkeypatch.setattr(console.Progress, "update", watch)
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda _: True)
    bertgen_run(*arguments)
    assert shown["done"] == shown["total"] == 1600
    assert re.fullmatch(r"200 lines, [\d.]+ lines/s, \d+ tokens/s, 0:00:00 left", shown["note"])
    shown.clear()
    assert bertgen_run(*arguments, "--quiet") == (0, "", "") and not shown
    monkeypatch.setattr(console, "BAR_SECONDS", 100.0)
    bertgen_run(*arguments)
    assert not shown


def test_progress_in_a_log(bertgen_run, tmp_path, monkeypatch):
    """Where there is no terminal a line now and then, by the clock."""
    (tmp_path / "in.txt").write_text("one two\n" * 200)
    now = iter(range(0, 10**6))
    monkeypatch.setattr(console.time, "monotonic", lambda: float(next(now)))  # a second for each line, and some more
    lines = bertgen_run("--input", tmp_path / "in.txt", "--output", tmp_path / "out.txt")[2].splitlines()[:-1]
    pattern = r"bertgen: (\d+)%, \d+ lines, [\d.]+ lines/s, \d+ tokens/s, \d:\d\d:\d\d left"
    shares = [int(re.fullmatch(pattern, line)[1]) for line in lines]
    assert 3 < len(shares) < 30 and shares == sorted(set(shares)) and 0 < shares[0] < 50 < shares[-1]
    assert bertgen_run("--input", tmp_path / "in.txt", "--output", tmp_path / "more.txt", "--quiet") == (0, "", "")


def test_sampling_options_that_do_nothing_are_told(bertgen_run, tiny_checkpoint, tmp_path):
    given = ["--temperature", "0.7", "--top-k", "5", "--seed", "3"]
    code, out, err = bertgen_run("one", *given)
    assert (code, out) == (0, "eins\n")
    assert err == "bertgen: --temperature, --top-k, --seed: of no effect without --do-sample\n"
    assert bertgen_run("one", *given, "--do-sample")[2] == ""
    model = Generator(tiny_checkpoint).model
    model.generation_config.do_sample = True
    model.save_pretrained(tmp_path / "sampling")
    sampling = ["--model", tmp_path / "sampling", "--tokenizer", tiny_checkpoint]
    assert bertgen_run("one", *given, *sampling)[2] == "", "the model says that it draws"


# errors


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["one", "--task", "fill-mask"], 2, "task 'fill-mask' is not one of text2text-generation"),
        (["one", "--input", "x"], 2, "not both"),
        (["one", "--format", "jsonl"], 2, "not both"),
        (["one", "--output", "x"], 2, "--output needs --input"),
        (["one", "--n-best", "5"], 2, "--n-best 5 needs beams or sampling: greedy search has one output"),
        (["one", "--n-best", "0"], 2, "--n-best must be an integer from 1"),
        (["one", "--num-beams", "0"], 2, "--num-beams must be an integer from 1"),
        (["one", "--max-rows", "0"], 2, "--max-rows must be an integer from 1 to 2147483647, got 0"),
        (["one", "--column", "2"], 2, "--column 2 is for the format tsv"),
        (["one", "two " * 50, "--strict"], 2, "arguments, line 2: 50 tokens, the limit is 48"),
        (["one", "two \udcff", "--strict"], 2, "arguments, line 2: not UTF-8"),
        (["one", "--window", "0"], 2, "--window must be an integer from 1"),
        (["one", "--restart"], 2, "--restart needs --output"),
        (["one", "--num-shards", "2", "--shard-index", "0"], 2, "--num-shards needs --output"),
        (["one", "--num-shards", "2"], 2, "--num-shards and --shard-index go together"),
        (["--input", "x", "--output", "y", "--shard-index", "0"], 2, "--num-shards and --shard-index go together"),
        (["one", "--stats", "-"], 2, "--stats - needs --output"),
        (["--input", "x", "--output", "y", "--stats", "./x"], 2, "--stats ./x is the input or the output"),
        (["--input", "x", "--output", "y", "--stats", "./y"], 2, "--stats ./y is the input or the output"),
        (["--input", "x", "--output", "y", "--stats", "./y.part"], 2, "--stats ./y.part is the input or the output"),
        (["--input", "in.txt", "--stats", "no/s"], 3, "no/s cannot be written: there is no folder"),
        (["-"], 2, "- is a text here; without TEXT and --input the lines of stdin are read"),
        (["one", "--max-new-tokens", "1000"], 2, "--max-new-tokens 1000 needs 1000 decoder positions"),
        (["one", "--max-length", "1000"], 2, "--max-length 1000 needs 999 decoder positions"),
        (["--input", "array.jsonl"], 2, "array.jsonl is a JSON array; JSON lines hold an object in each line"),
        (["--input", "pretty.jsonl"], 2, "pretty.jsonl is a JSON array"),
        (["--input", "macintosh.txt"], 2, "macintosh.txt ends its lines with CR alone"),
        (["--input", "/no/such/file"], 2, "/no/such/file cannot be read: No such file or directory"),
        (["--input", "/dev/null", "--output", "/no/such/out"], 3, "/no/such/out cannot be written: No such file"),
        (["--input", "in.txt", "--output", "/dev/full"], 3, "/dev/full cannot be written: No space left"),
        (["one", "--tokenizer", "/no/such"], 3, "/no/such"),
        (["one", "--device", "gpu"], 2, "device 'gpu' is not a device; this machine has cpu"),
        (["one", "--device", "xpu"], 2, "; this machine has cpu"),
        (
            ["--input", "in.csv"],
            2,
            "in.csv: .csv is the suffix of no format; there are text (.txt), tsv (.tsv) and jsonl",
        ),
        (["--input", "in.txt", "--output", "out.gz"], 2, "out.gz: .gz is the suffix of no format"),
        (["--input", "in.csv", "--model", "/no/such"], 2, "say which with --format"),
        (["--input", "in.gz", "--format", "text", "--model", "/no/such"], 2, "in.gz is compressed by gzip"),
        (["--input", "in.gz", "--format", "text", "--output", "out"], 2, "in.gz is compressed by gzip"),
        (
            ["one two " * 50, "two " * 50],
            2,
            "each of the first 2 lines failed, the rest is not tried; arguments, line 1",
        ),
        (
            ["--input", "in.tsv", "--column", "2"],
            2,
            "in.tsv, line 1: 1 columns separated by tabs, the text is in column 2",
        ),
    ],
)
def test_errors(bertgen_run, tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.txt").write_text("one\n")
    (tmp_path / "in.tsv").write_text("one\ntwo\n")
    (tmp_path / "array.jsonl").write_text('[{"text": "one"}, {"text": "two"}]\n')
    (tmp_path / "pretty.jsonl").write_text('[\n  {"text": "one"},\n  {"text": "two"}\n]\n')
    (tmp_path / "macintosh.txt").write_bytes(b"one\rtwo\r")
    (tmp_path / "in.csv").write_text("one,two\n")
    (tmp_path / "in.gz").write_bytes(gzip.compress(b"one\n"))
    found, out, err = bertgen_run(*arguments)
    assert (found, out) == (code, "")
    assert err.startswith("bertgen: error: ") and message in err and err.count("\n") == 1


def test_bad_models(capsys, tmp_path, tiny_checkpoint):
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in tiny_checkpoint.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:-100])
    (tmp_path / "empty").mkdir()
    for model in (broken, tmp_path / "empty", tmp_path / "missing"):
        assert cli.main(["run", "--model", str(model), "one"]) == 3
        assert capsys.readouterr().err.startswith("bertgen: error: ")


def test_the_folder_of_a_training_proposes_its_best(capsys, tmp_path, tiny_checkpoint):
    shutil.copytree(tiny_checkpoint, tmp_path / "trained/best")
    for name in ("spiece.model", "tokenizer_config.json"):
        shutil.copy(tiny_checkpoint / name, tmp_path / "trained")
    folder = str(tmp_path / "trained")
    for command in (["run", "one"], ["info"], ["convert", "--output", f"{folder}/x"]):
        assert cli.main([command[0], "--model", folder, *command[1:]]) == 3
        assert f"; {folder}/best has one, the best checkpoint of a training run" in capsys.readouterr().err
    assert cli.main(["run", "--model", f"{folder}/best", "one"]) == 0


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")]
)
def test_memory_that_does_not_suffice(bertgen_run, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(cli.run, "make_generator", fail)
    code, out, err = bertgen_run("one")
    assert (code, out) == (3, "") and err.startswith("bertgen: error: out of memory: ") and err.count("\n") == 1


def test_a_fault_has_a_code_of_its_own(bertgen_run, monkeypatch):
    """1 would say that some lines failed."""
    monkeypatch.setattr(cli.run, "make_generator", lambda _: 1 / 0)
    code, out, err = bertgen_run("one")
    assert (code, out) == (70, "") and "Traceback" in err
    assert err.endswith("bertgen: error: ZeroDivisionError is a fault in bertgen; please report the traceback above\n")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_device_that_is_not_there(bertgen_run):
    message = "bertgen: error: device 'cuda:0' does not exist: this machine has 0 CUDA devices\n"
    assert bertgen_run("one", "--device", 0) == (2, "", message)


@pytest.mark.parametrize(
    "error, code, said", [(KeyboardInterrupt, 130, "interrupted"), (cli._Terminated, 143, "terminated")]
)
def test_interruption(bertgen_run, tmp_path, monkeypatch, error, code, said):
    (tmp_path / "in.txt").write_text("one\n" * 30)
    arguments = ("--input", tmp_path / "in.txt", "--output", tmp_path / "out.txt", "--window", 10)
    count = JobReport.count

    def interrupt(report, *rest):
        count(report, *rest)
        if report.lines == 25:
            raise error

    with monkeypatch.context() as patch:
        patch.setattr(JobReport, "count", interrupt)
        kept = "bertgen: 20 lines are done and kept; the same command goes on from there\n"
        assert bertgen_run(*arguments) == (code, "", f"{kept}bertgen: {said}\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt", "out.txt.job", "out.txt.part"]
    code, _, err = bertgen_run(*arguments, "--stats", tmp_path / "stats.json")
    resuming, summary = err.splitlines()
    assert code == 0 and resuming == f"bertgen: resuming at line 21 of {tmp_path}/in.txt"
    assert summary.startswith(f"bertgen: {tmp_path}/out.txt: 30 lines, 0 failed, 0 truncated; ")
    assert (tmp_path / "out.txt").read_text() == "eins\n" * 30
    found = json.loads((tmp_path / "stats.json").read_text())
    assert (found["lines"], found["windows"], found["resumed_at"], found["first_line"]) == (30, 3, 21, 1)
    assert (
        found["lines_per_second"] == pytest.approx(10 / found["seconds"]) and found["seconds_total"] > found["seconds"]
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt", "out.txt", "stats.json"]


@pytest.mark.parametrize("method", ["advance", "results"])
@pytest.mark.parametrize("num_beams", [1, 2])
def test_sigterm_inside_a_search_ends_the_job_and_fails_no_line(bertgen_run, tmp_path, monkeypatch, method, num_beams):
    """The engine attributes what a search raises to its requests, but not what a signal handler raises."""
    (tmp_path / "in.txt").write_text("one\n" * 30)
    arguments = ("--input", tmp_path / "in.txt", "--output", tmp_path / "out.txt", "--window", 10)
    arguments += ("--num-beams", num_beams)
    search, calls, deadly = (BeamSearch if num_beams > 1 else Sampling), 0, None
    function = getattr(search, method)
    if method == "advance":  # which static steps do not call
        monkeypatch.setattr("bertgen.engine.engine.why_not_static_request", lambda *_: "the search is watched")

    def counted(*rest):
        nonlocal calls
        calls += 1
        if calls == deadly:
            os.kill(os.getpid(), signal.SIGTERM)
        return function(*rest)

    with monkeypatch.context() as patch:
        patch.setattr(search, method, counted)
        assert bertgen_run(*arguments)[0] == 0
        whole = (tmp_path / "out.txt").read_bytes()
        (tmp_path / "out.txt").unlink()
        calls, deadly = 0, calls // 2 + 1
        code, _, err = bertgen_run(*arguments)
    assert code == 143 and err.endswith("bertgen: terminated\n") and calls == deadly
    assert json.loads((tmp_path / "out.txt.job").read_bytes())["report"]["failed"] == 0
    code, _, err = bertgen_run(*arguments)
    assert code == 0 and "resuming at line 11 of" in err and (tmp_path / "out.txt").read_bytes() == whole


def test_processes(tiny_checkpoint, tmp_path):
    """What only a process of its own shows: a signal in the middle of a job, a reader that goes away, a full stdout."""
    run = ("run", "--model", tiny_checkpoint, "--max-rows", 500)
    (tmp_path / "in.txt").write_text("one two three\n" * 100_000)
    files = ("--input", tmp_path / "in.txt", "--output", tmp_path / "out.txt", "--window", 500)
    job = start(*run, *files, stdout=subprocess.PIPE)
    with open(tmp_path / "in.txt", "rb") as lines, open("/dev/full", "wb") as full:
        head = start(*run, "--task", "text2text-generation", stdin=lines, stdout=subprocess.PIPE)
        info = start("info", stdout=full)

    assert head.stdout.readline() == b"eins zwei drei\n"
    head.stdout.close()
    assert (head.wait(60), head.stderr.read()) == (141, b"")
    head.stderr.close()

    assert info.communicate(timeout=60)[1] == b"bertgen: error: stdout cannot be written: No space left on device\n"
    assert info.returncode == 3

    deadline = time.monotonic() + 60
    part = tmp_path / "out.txt.part"
    while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)
    job.send_signal(signal.SIGTERM)
    out, err = job.communicate(timeout=30)
    assert (job.returncode, out) == (143, b"")
    assert re.fullmatch(
        rb"bertgen: \d+00 lines are done and kept; the same command goes on from there\nbertgen: terminated\n", err
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt", "out.txt.job", "out.txt.part"]
