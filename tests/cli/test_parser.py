"""Command lines that cannot be read, and the names of options in errors."""

import pytest

from bertgen import cli
from bertgen.cli.parser import as_typed


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
