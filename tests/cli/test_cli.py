"""The command line: what it prints where, and its exit codes."""

import gzip
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import sacrebleu
import torch

import bertgen
from bertgen import Generator, cli
from bertgen.cli import console
from bertgen.cli.parser import as_typed
from bertgen.engine import Engine
from bertgen.jobs import JobReport
from bertgen.ops import extension
from tests.support.checkpoints import FIRST, sentence, translation

ROOT = Path(__file__).parents[2]


@pytest.fixture
def stdin(monkeypatch):
    def give(content, terminal=False):
        stream = io.TextIOWrapper(io.BytesIO(content))
        stream.isatty = lambda: terminal
        monkeypatch.setattr(sys, "stdin", stream)

    return give


@pytest.fixture
def bertgen_run(tiny_checkpoint, capsys):
    """Calls `bertgen run` with the tiny model; exit code, stdout and stderr."""

    def call(*arguments):
        code = cli.main(["run", "--model", str(tiny_checkpoint), *map(str, arguments)])
        return (code, *capsys.readouterr())

    return call


def start(*arguments, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONUNBUFFERED", None)  # which would hide what a full buffer does when Python ends
    command = [sys.executable, "-m", "bertgen", *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, **options)


# the frame


def test_help_and_version_need_no_torch():
    """A finder that refuses torch stands for the time that importing it takes."""
    code = """
        import sys
        class Refuse:
            def find_spec(self, name, *_):
                assert name.partition(".")[0] not in ("torch", "numpy", "rich", "sentencepiece"), name
        sys.meta_path.insert(0, Refuse())
        from bertgen.cli import main
        sys.exit(main(sys.argv[1:]))
    """
    code = "\n".join(line[8:] for line in code.splitlines())
    commands = ("run", "score", "evaluate", "compare", "convert", "info")
    for arguments in (["--help"], *([command, "--help"] for command in commands), ["--version"]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        if arguments == ["--version"]:
            assert done.stdout == f"bertgen {bertgen.__version__}\n"
        else:
            assert "141" in done.stdout and "nobody reads the output" in done.stdout, "the exit codes are explained"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["walk"],
        ["run"],
        ["run", "--model", "x", "--num-beam", "4", "one"],
        ["run", "--model", "x", "--num-beams", "four", "one"],
        ["run", "--model", "x", "--early-stopping", "maybe", "one"],
        ["evaluate", "--model", "x"],
        ["train"],
    ],
    ids=" ".join,
)
def test_usage_errors(arguments, capsys):
    """The reason comes first, and what stands behind it does not push it off the screen."""
    with pytest.raises(SystemExit) as exit:
        cli.main(arguments)
    assert exit.value.code == 2
    out, err = capsys.readouterr()
    reason, usage = err.splitlines()
    assert out == "" and re.match("bertgen.*: error: ", reason) and usage.startswith("usage: bertgen")


@pytest.mark.parametrize(
    "line, meant",
    [
        ("rum --model x", "run"),
        ("Evaluate", "evaluate"),
        ("run --model x --num-beam 4 one", "--num-beams"),
        ("run --model x --num_beams 4 one", "--num-beams"),
        ("run --model x --do_sample=1 one", "--do-sample"),
        ("score --mode x --data y", "--model"),
        ("train --trian x --output y", "--train"),
        ("bench op", "ops"),
        ("convert --model x --output y --to brat", "bart"),
    ],
)
def test_misspelt_words_are_guessed(line, meant, capsys):
    with pytest.raises(SystemExit):
        cli.main(line.split())
    assert capsys.readouterr().err.splitlines()[0].endswith(f"; did you mean {meant}?")


@pytest.mark.parametrize("arguments", (["--model", "demo", "run", "one"], ["--modle", "demo", "run"]), ids=" ".join)
def test_an_option_before_the_command_is_told_where_it_belongs(arguments, capsys):
    with pytest.raises(SystemExit):
        cli.main(arguments)
    assert f"error: {arguments[0]} stands before the command; options come after it" in capsys.readouterr().err


@pytest.mark.parametrize("name, reason", [("", "the name is empty"), ("-", "- names no stream here; /dev/stdin")])
@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--model", "x", "--input"],
        ["run", "--model", "x", "--input", "in.txt", "--output"],
        ["run", "--model"],
        ["score", "--model", "x", "--data"],
        ["evaluate", "--model", "x", "--data", "y", "--output"],
        ["compare", "--model", "x", "--input"],
        ["convert", "--model", "x", "--output"],
    ],
    ids=" ".join,
)
def test_a_file_without_a_name_is_refused(arguments, name, reason, capsys):
    """As an unset variable of a shell gives it; it is not read as an option that was left out."""
    with pytest.raises(SystemExit) as exit:
        cli.main([*arguments, name])
    assert exit.value.code == 2
    assert f"argument {arguments[-1]}: {reason}" in capsys.readouterr().err


def test_nothing_is_guessed_from_afar(capsys):
    with pytest.raises(SystemExit):
        cli.main(["run", "--model", "x", "--quantum", "1"])
    assert "did you mean" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "message, typed",
    [
        ("num_beams must be an integer from 1", "--num-beams must be an integer from 1"),
        ("window must be an integer from 1", "--window must be an integer from 1"),
        (
            "num_return_sequences 5 needs beams or sampling: greedy search has one output",
            "--n-best 5 needs beams or sampling: greedy search has one output",
        ),
        ("do_sample=True: the draws differ", "--do-sample: the draws differ"),
        ("out is there already; overwrite replaces it", "out is there already; --overwrite replaces it"),
        (
            "x.csv is the suffix of no format; say which with format",
            "x.csv is the suffix of no format; say which with --format",
        ),
        ("48 (truncation cuts longer texts)", "48 (--truncate cuts longer texts)"),
        ("/num_beams/seed=1/max_rows.txt, line 1: the window", "/num_beams/seed=1/max_rows.txt, line 1: the window"),
        ("no field 'num_beams'; there are 'max_rows'", "no field 'num_beams'; there are 'max_rows'"),
        ("the text is in column 2", "the text is in column 2"),
    ],
)
def test_options_are_called_as_they_are_typed(message, typed):
    parser = cli._parser(["run"])
    args = parser.parse_args(["run", "--model", "x"])
    assert as_typed(message, args.flags) == typed


def test_signal_handler_is_put_back(capsys):
    before = signal.getsignal(signal.SIGTERM)
    cli.main(["info"])
    assert signal.getsignal(signal.SIGTERM) is before


# run: texts and lines


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


# run: files


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
    monkeypatch.setattr(console, "PATIENCE", 0.0)
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
    monkeypatch.setattr(console, "PATIENCE", 100.0)
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


# run: errors


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
        assert f"; {folder}/best has one: what a training into this folder kept" in capsys.readouterr().err
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
    assert err.endswith("bertgen: error: ZeroDivisionError is a fault in bertgen; please report what stands above\n")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_device_that_is_not_there(bertgen_run):
    message = "bertgen: error: device 'cuda:0' was asked for, this machine has 0 CUDA devices\n"
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


# every way out

# Standard streams, by their numbers: closed, a file, or a pipe that nobody reads.
WAYS = {
    "all is done": (["one"], {}, 0, "", "eins\n"),
    "some lines fail": (["one", "", "\udcff"], {}, 1, "arguments, line 3: not UTF-8", "eins\n\n\n"),
    "every line fails": (["\udcff", "\udcfe"], {}, 2, "each of the first 2 lines failed", ""),
    "no such model": (["one", "--model", "/no/such"], {}, 3, "/no/such", ""),
    "stdin is closed": ([], {0: None}, 2, "error: stdin cannot be read: Bad file descriptor", ""),
    "stdout is closed": (["one"], {1: None}, 3, "error: stdout cannot be written: Bad file descriptor", ""),
    "stdout is full": (["one"], {1: "/dev/full"}, 3, "error: stdout cannot be written: No space left on device", ""),
    "nobody reads": (["one"], {1: "pipe"}, 141, "", ""),
    "a file in a number that was free": (["--input", "in.txt", "--output", "out.txt"], {0: None, 1: None}, 0, "", ""),
    "nobody reads the output": (["--input", "in.txt", "--output", "/dev/stdout"], {1: "pipe"}, 141, "", ""),
    "stderr is closed": (["one", "\udcff"], {2: None}, 1, "", "eins\n\n"),
    "stderr is full": (["one", "\udcff"], {2: "/dev/full"}, 1, "", "eins\n\n"),
    "nobody reads stderr": (["one", "\udcff"], {2: "pipe"}, 1, "", "eins\n\n"),
    "all is closed": (["one"], {0: None, 1: None, 2: None}, 3, "", ""),
}
# Forks from a process that has imported torch, does to the streams of each child what a shell would, and lets it end.
FORKS = """
    import json, os, sys
    import torch
    torch.set_num_threads(1)
    from bertgen import Generator, cli
    from bertgen.cli import run
    arguments, ways = json.loads(sys.argv[1]), json.loads(sys.argv[2])
    codes = {}
    for name, (more, streams) in ways.items():
        child = os.fork()
        if child == 0:
            for number, stream in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
                where = streams.get(str(number), os.devnull if number == 0 else f"{name}.{number}")
                if where is None:
                    os.close(number)
                    setattr(sys, stream, None)
                    continue
                if where == "pipe":
                    reader, handle = os.pipe()
                    os.close(reader)
                else:
                    handle = os.open(where, os.O_RDWR | os.O_CREAT)
                os.dup2(handle, number)
                os.close(handle)
                setattr(sys, stream, open(number, "w" if number else "r", buffering=1 if number == 2 else -1))
            sys.exit(cli.main([*arguments, *more]))
        codes[name] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps(codes))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_every_way_out_has_its_code(tiny_checkpoint, tmp_path):
    """As docs/command-line.md says it, without a traceback."""
    (tmp_path / "in.txt").write_text("one\ntwo\n")
    ways = json.dumps({name: way[:2] for name, way in WAYS.items()})
    command = [sys.executable, "-c", textwrap.dedent(FORKS), json.dumps(["run", "--model", str(tiny_checkpoint)]), ways]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONUNBUFFERED", None)  # which would hide what a full buffer does when Python ends
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {name: way[2] for name, way in WAYS.items()}
    for name, (_, streams, _, said, out) in WAYS.items():
        if 1 not in streams:
            assert (tmp_path / f"{name}.1").read_text() == out, name
        if 2 not in streams:
            err = (tmp_path / f"{name}.2").read_text()
            assert said in err and "Traceback" not in err, (name, err)
    assert (tmp_path / "out.txt").read_text() == "eins\nzwei\n"


@pytest.mark.parametrize(
    "line, code, said",
    [
        ("bertgen --help > /dev/full", 3, b"error: stdout cannot be written: No space left on device"),
        ("bertgen --version >&-", 3, b"error: stdout cannot be written: Bad file descriptor"),
        ("set -o pipefail; bertgen --help | true", 141, b""),
        ("bertgen run --bad 2>&-", 2, b""),
    ],
)
def test_ways_out_through_a_shell(line, code, said):
    line = line.replace("bertgen", f"{sys.executable} -m bertgen", 1)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONUNBUFFERED", None)  # argparse passes over what it is told at once
    done = subprocess.run(["bash", "-c", line], env=environment, capture_output=True)
    assert (done.returncode, done.stdout) == (code, b""), done.stderr
    assert said in done.stderr and b"Traceback" not in done.stderr


def test_an_unbuffered_stdout_that_is_full_is_named():
    line = f"{sys.executable} -m bertgen info > /dev/full"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    done = subprocess.run(["bash", "-c", line], env=environment, capture_output=True)
    assert done.returncode == 3 and b"error: stdout cannot be written: No space left on device" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_a_pipe_is_answered_as_it_comes_until_an_interrupt(tiny_checkpoint):
    job = start("run", "--model", tiny_checkpoint, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    for source, target in ((b"one\n", b"eins\n"), (b"two\nthree\n", b"zwei\n"), (b"", b"drei\n")):
        job.stdin.write(source)
        job.stdin.flush()
        assert job.stdout.readline() == target, "while the pipe stays open"
    job.send_signal(signal.SIGINT)
    assert job.wait(30) == 130 and job.stdout.read() == b"" and job.stderr.read() == b"bertgen: interrupted\n"
    for stream in (job.stdin, job.stdout, job.stderr):
        stream.close()


# evaluate


@pytest.fixture
def pairs(tmp_path):
    r = random.Random(9)
    rows = [(source, translation(source)) for source in (sentence(r) for _ in range(40))]
    rows += [(rows[0][0], "hund hund hund"), (rows[3][0], rows[3][1] + " eins")]
    (tmp_path / "test.tsv").write_text("".join(f"{source}\t{target}\n" for source, target in rows))
    return rows


def test_evaluate(tiny_checkpoint, pairs, tmp_path, capsys):
    arguments = ["evaluate", "--model", str(tiny_checkpoint), "--data", str(tmp_path / "test.tsv"), "--num-beams", "2"]
    assert cli.main([*arguments, "--json", "--output", str(tmp_path / "hyp.txt")]) == 0
    found = json.loads(capsys.readouterr().out)
    grouped = {}
    for source, target in pairs:
        grouped.setdefault(source, []).append(target)
    outputs = [output.text for output in Generator(tiny_checkpoint).generate(list(grouped), num_beams=2)]
    assert (tmp_path / "hyp.txt").read_text().splitlines() == outputs
    streams = [[targets[0] for targets in grouped.values()]]
    streams.append([targets[1] if len(targets) > 1 else None for targets in grouped.values()])
    assert max(map(len, grouped.values())) == 2
    assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu(outputs, streams).score)
    assert found["chrf"] == pytest.approx(sacrebleu.corpus_chrf(outputs, streams).score)
    assert found["bleu"] > 90 and found["bleu_signature"].startswith("nrefs:var|case:mixed|eff:no|tok:13a")
    assert (found["sentences"], found["references"]) == (len(grouped), len(pairs))
    assert found["tokens_per_second"] == pytest.approx(found["tokens"] / found["seconds"])

    assert cli.main(arguments) == 0
    out, err = capsys.readouterr()
    bleu, chrf, counts = out.splitlines()
    assert bleu == f"BLEU {found['bleu']:.2f}  {found['bleu_signature']}" and err == ""
    assert chrf == f"chrF {found['chrf']:.2f}  {found['chrf_signature']}"
    assert counts.startswith(f"{len(grouped)} sentences with {len(pairs)} references; {found['tokens']} tokens in ")


def test_evaluate_spares_its_data(tiny_checkpoint, pairs, tmp_path, capsys):
    data = str(tmp_path / "test.tsv")
    before = (tmp_path / "test.tsv").read_text()
    command = ["evaluate", "--model", str(tiny_checkpoint), "--data", data, "--overwrite", "--output", data]
    assert cli.main(command) == 2 and "is the data" in capsys.readouterr().err
    assert (tmp_path / "test.tsv").read_text() == before


def test_evaluate_uses_the_beams_of_the_model(tiny_checkpoint, pairs, tmp_path, capsys, monkeypatch):
    model = Generator(tiny_checkpoint).model
    model.generation_config.num_beams = 3
    model.save_pretrained(tmp_path / "beams")
    widths = []
    submit = Engine.submit

    def record(self, requests, on_done):
        widths.extend(request.rows for request in requests)
        return submit(self, requests, on_done)

    monkeypatch.setattr(Engine, "submit", record)
    data = ["--tokenizer", str(tiny_checkpoint), "--data", str(tmp_path / "test.tsv")]
    assert cli.main(["evaluate", "--model", str(tmp_path / "beams"), *data]) == 0
    assert set(widths) == {3}


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "No such file"),
        ("\ufffe", "UTF-16"),
        ("", "no pairs"),
        ("one\n", "line 1: 1 tab-separated columns, 2 needed"),
        ("one\t\n", "line 1"),
    ],
)
def test_evaluate_bad_data(tiny_checkpoint, tmp_path, capsys, content, message):
    if content is not None:
        (tmp_path / "data.tsv").write_text(content, encoding="utf-16" if "\ufffe" in content else "utf-8")
    arguments = ["evaluate", "--model", str(tiny_checkpoint), "--data", str(tmp_path / "data.tsv")]
    assert cli.main([*arguments, "--output", str(tmp_path / "hyp.txt")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and not (tmp_path / "hyp.txt").exists()


def test_evaluate_leaves_out_what_cannot_be_used(tiny_checkpoint, pairs, tmp_path, capsys):
    """One bad line does not stop the file; it is named, and not in the scores."""
    data = tmp_path / "test.tsv"
    arguments = ["evaluate", "--model", str(tiny_checkpoint), "--data", str(data), "--json"]
    assert cli.main(arguments) == 0
    good = json.loads(capsys.readouterr().out)
    lines = data.read_bytes().splitlines(keepends=True)
    bad = [b"one\n", b"\xff\teins\n", b"one " * 60 + b"\teins\n", b"\teins\n", b"two \xe2\x80\x8b\t\n"]
    lines[5:5] = bad
    data.write_bytes(b"".join(lines) + b"\n")
    assert cli.main([*arguments, "--output", str(tmp_path / "hyp.txt")]) == 1
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert (found["failed"], good["failed"]) == (5, 0)
    for name in ("bleu", "chrf", "sentences", "references", "tokens"):
        assert found[name] == good[name], name
    told = [line.removeprefix(f"bertgen: {data}, ") for line in err.splitlines()]
    assert told[:2] == [
        "line 6: 1 tab-separated columns, 2 needed: 'one'",
        "line 7: not UTF-8: invalid start byte at byte 0",
    ]
    assert told[2] == "line 8: 60 tokens, the limit is 48 (--truncate cuts longer texts)"
    assert told[3:5] == ["line 9: the source is empty", "line 10: the target is empty"]
    assert told[5:] == ["bertgen: 5 lines could not be used, and are not in the scores"]
    outputs = (tmp_path / "hyp.txt").read_text().splitlines()
    assert len(outputs) == good["sentences"] + 1 and outputs[5] == "", "one for each different source that was read"
    assert cli.main([*arguments, "--truncate"]) == 1 and json.loads(capsys.readouterr().out)["failed"] == 4
    assert cli.main([*arguments, "--strict"]) == 2 and "line 6: 1 tab-separated" in capsys.readouterr().err
    data.write_bytes(b"".join(lines[:5] + bad[2:3]))
    assert cli.main([*arguments, "--strict", "--output", str(tmp_path / "none.txt")]) == 2
    assert "line 6: 60 tokens" in capsys.readouterr().err and not (tmp_path / "none.txt").exists()
    data.write_bytes(bad[2])
    assert cli.main(arguments) == 2 and "no line can be used; " in capsys.readouterr().err


# train


def test_a_training_without_an_end_names_the_flags_that_set_one(capsys):
    assert cli.main(["train", "--train", "x", "--output", "y"]) == 2
    said = "no end: give --epochs, --steps, --max-minutes or --decay-steps\n"
    assert capsys.readouterr().err == f"bertgen: error: {said}"


def test_train_names_an_output_that_cannot_be_a_folder(tmp_path, capsys):
    (tmp_path / "train.tsv").write_text("one\teins\n")
    (tmp_path / "file").write_text("mine")
    for output, reason in (("file", "File exists"), ("file/under", "Not a directory")):
        code = cli.main(
            ["train", "--train", f"{tmp_path}/train.tsv", "--output", f"{tmp_path}/{output}", "--steps", "1"]
        )
        assert code == 3 and f"error: {tmp_path}/{output} cannot be written: {reason}" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_train(tmp_path, capsys):
    (tmp_path / "train.tsv").write_text("".join(f"{a} {b}\t{FIRST[a]} {FIRST[b]}\n" for a in FIRST for b in FIRST))
    (tmp_path / "dev.tsv").write_text("one two\teins zwei\n")
    arguments = "--vocab-size 60 --layers 1 --hidden 16 --heads 2 --intermediate 16 --positions 16 --max-length 16"
    arguments += f" --train {tmp_path}/train.tsv --dev {tmp_path}/dev.tsv --output {tmp_path}/model --steps 2 --quiet"
    assert cli.main(["train", *arguments.split(), "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and out.startswith(
        f"ended at update 2 (steps); checkpoints in {tmp_path}/model\nbest at update 2: loss "
    )
    assert cli.main(["train", *arguments.split()]) == 2
    assert "--resume continues it, or take another folder" in capsys.readouterr().err
    assert cli.main(["train", *arguments.replace("--layers 1", "--layers 0").split()]) == 2
    assert "--layers 0: must be at least 1" in capsys.readouterr().err


def test_train_that_a_signal_ends(tmp_path, capsys, monkeypatch):
    from bertgen.trainer import Trainer, TrainingResult

    for name, code in (("SIGINT", 130), ("SIGTERM", 143)):
        result = TrainingResult(name, 7, None, 0, tmp_path)
        monkeypatch.setattr(Trainer, "train", lambda _, result=result: result)
        assert cli.main(["train", "--train", "x", "--output", "y", "--steps", "1"]) == code
        assert (
            capsys.readouterr().out == f"ended at update 7 ({name}); checkpoints in {tmp_path}\n--resume continues it\n"
        )


# info


def test_info(tiny_checkpoint, capsys):
    assert cli.main(["info", "--json", "--model", str(tiny_checkpoint)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["bertgen"] == bertgen.__version__ and found["versions"]["torch"] == torch.__version__
    assert f"{torch.get_num_threads()} threads" in found["devices"]["cpu"]
    assert found["ops"]["attention"].startswith("reference: ")
    expected = "cpp in float32" if extension.available() else "reference: no C++ extension"
    assert found["ops"]["decode_attention"].startswith(expected)
    expected = "cpp, all layers in one call" if extension.available() else "layer by layer"
    assert found["ops"]["decoder_step"].startswith(expected)
    model = bertgen.EncoderDecoderModel.from_pretrained(tiny_checkpoint)
    assert found["model"]["parameters"] == model.num_parameters()
    assert found["model"]["encoder"] == "2 layers, hidden 48, 4 heads, 48 positions, vocabulary 64"
    assert found["model"]["bytes on disk"] == (tiny_checkpoint / "model.safetensors").stat().st_size
    assert found["model"]["tokenizer"] == "64 tokens" and found["model"]["dtype"] == "float32"
    assert "transformers" not in sys.modules or found["versions"]["transformers"]

    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    assert "model" not in out.splitlines() and re.search(r"^  bertgen +0", out, re.MULTILINE)


def test_info_with_checks_where_no_kernel_runs(capsys):
    assert cli.main(["info", "--check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["check"] == {
        "none": "no kernel runs here, only definitions: nothing to compare"
    }
    assert cli.main(["info", "--check", "bias_gelu", "no_such"]) == 2
    assert "--check no_such: there are checks of attention" in capsys.readouterr().err


def test_info_of_a_missing_model(capsys):
    assert cli.main(["info", "--model", "/no/such/model"]) == 3
    assert capsys.readouterr().out == ""
