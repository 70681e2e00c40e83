"""`bertgen compare`: the differences it finds between a model in bertgen and in transformers."""

import json
import sys

import pytest
import torch
import transformers

from bertgen import BackendError, CheckpointError, EncoderDecoderModel, GenerationConfig, Generator, cli, compare
from tests.support.checkpoints import sentences


@pytest.fixture(scope="module")
def texts():
    return sentences(8, 30)


@pytest.fixture(scope="module")
def disturbed(tiny_checkpoint, tmp_path_factory):
    """The tiny checkpoint with other values in the head: some outputs differ."""
    folder = tmp_path_factory.mktemp("disturbed") / "checkpoint"
    model = EncoderDecoderModel.from_pretrained(tiny_checkpoint)
    with torch.no_grad():
        torch.manual_seed(4)
        model.decoder.lm_head.bias += torch.randn(64)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def bertgen_compare(tiny_checkpoint, tmp_path, capsys):
    """Calls `bertgen compare` on a file of these lines; exit code, stdout and stderr."""

    def call(lines, *arguments, model=tiny_checkpoint):
        path = tmp_path / "texts.txt"
        path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines))
        code = cli.main(["compare", "--model", str(model), "--input", str(path), *map(str, arguments)])
        return (code, *capsys.readouterr())

    return call


@pytest.mark.parametrize(
    "options", [[], ["--num-beams", 3, "--batch-size", 7], ["--max-new-tokens", 3], ["--no-repeat-ngram-size", 1]]
)
def test_the_same_model_gives_the_same_tokens(bertgen_compare, texts, options):
    code, out, err = bertgen_compare(["\ufeff" + texts[0], "", *texts[1:], " "], "--json", *options)
    results = json.loads(out)
    assert (code, err) == (0, "")
    assert (results["texts"], results["equal"], results["beyond_margin"], results["differences"]) == (30, 30, 0, [])
    assert results["bertgen"]["tokens"] == results["transformers"]["tokens"] > 30
    for speed in (results["bertgen"], results["transformers"]):
        assert speed["tokens_per_second"] == pytest.approx(speed["tokens"] / speed["seconds"])


def test_outputs_end_at_the_same_length_without_a_limit(generator, tiny_checkpoint, tmp_path, texts):
    """transformers' own default would be 20 tokens."""
    model = EncoderDecoderModel.from_pretrained(tiny_checkpoint)
    model.generation_config = GenerationConfig(
        pad_token_id=0, eos_token_id=1, decoder_start_token_id=2, suppress_tokens=[1]
    )
    model.save_pretrained(tmp_path)
    result = compare.compare(Generator(model, generator.tokenizer), tmp_path, texts[:2])
    assert result.ours.tokens == result.theirs.tokens == 2 * 47 and result.differences == []


def test_differences_are_named(generator, disturbed, tiny_checkpoint, texts):
    """Compared with another model: outputs are those of each `generate`, the margin is of this model's logits."""
    theirs = transformers.EncoderDecoderModel.from_pretrained(disturbed).eval()
    judge = transformers.EncoderDecoderModel.from_pretrained(tiny_checkpoint).eval()
    results = compare.compare(generator, disturbed, ["", *texts])
    wrong = {one.index: one for one in results.differences}
    assert results.texts == 30 and 3 < len(wrong) < 30 and results.missing == ()
    for index, text in enumerate(texts, 1):
        ids = torch.tensor(generator.tokenizer.encode_batch([text]))
        row = theirs.generate(ids)[0, 1:].tolist()
        ours = list(generator.generate([text])[0].token_ids)
        assert (index in wrong) == (row != ours)
        if index in wrong:
            one = wrong[index]
            at = one.position
            assert row[:at] == ours[:at] and one.tokens == (ours[at], row[at]) and ours[at] != row[at]
            assert one.texts == tuple(generator.tokenizer.batch_decode([ours, row], skip_special_tokens=True))
            with torch.no_grad():
                logits = judge(ids, decoder_input_ids=torch.tensor([[2, *ours[:at]]])).logits[0, -1]
            assert one.margin == pytest.approx(float(logits[ours[at]] - logits[row[at]]), abs=1e-4) and one.margin > 0


def test_margin_under_beams_is_the_smaller_one(generator):
    config = GenerationConfig(num_beams=2, length_penalty=1.0)
    text, ours, theirs = "one two white", (5, 6, 7, 1), (5, 9, 1)
    one, other = generator.score([text] * 2, [ours, theirs])
    step, whole = abs(one.log_probs[1] - other.log_probs[1]), abs(one.score - other.score)
    assert compare._margins(generator, [(text, ours, theirs)], config) == [pytest.approx(min(step, whole))]
    assert compare._margins(generator, [(text, ours, theirs)], GenerationConfig()) == [pytest.approx(step)]
    assert step != pytest.approx(whole)
    assert compare._margins(generator, [(text, (5, 6), (5, 6, 7))], config) == [float("inf")]


def test_command_prints_the_differences(bertgen_compare, generator, disturbed, texts, monkeypatch):
    monkeypatch.setattr(compare, "local_directory", lambda path: disturbed)  # transformers loads another model
    code, out, _ = bertgen_compare(texts, "--json")
    results = json.loads(out)
    rows = results["differences"]
    assert code == 1 and results["beyond_margin"] == len(rows) == 30 - results["equal"] > 3
    largest = max(row["margin"] for row in rows)
    code, out, _ = bertgen_compare(texts, "--margin", largest + 1e-3)
    assert code == 0 and f"{results['equal']} outputs equal token for token, {len(rows)} not, 0 by more than" in out
    first = rows[0]
    pieces = generator.tokenizer.convert_ids_to_tokens(first["tokens"])
    assert first["pieces"] == pieces
    head, ours, theirs, *_ = out.splitlines()
    assert head.startswith(f"line {first['line']}, token {first['position'] + 1}: {pieces[0]} and {pieces[1]}, margin ")
    assert ours.split(maxsplit=1) == ["bertgen", first["texts"][0]]
    assert theirs.split(maxsplit=1) == ["transformers", first["texts"][1]]


def test_weights_that_were_written_once(bertgen_compare, texts, tiny_checkpoint, tmp_path):
    """transformers 5 would give the encoder random weights."""
    model = EncoderDecoderModel.from_pretrained(tiny_checkpoint)
    model.config.tie_encoder_decoder = True
    model.tie_weights()
    model.save_pretrained(tmp_path / "once", deduplicate=True)
    tokenizer = ["--tokenizer", tiny_checkpoint]
    code, out, err = bertgen_compare(texts[:5], *tokenizer, model=tmp_path / "once")
    assert code == 0 and "5 outputs equal" in out
    assert err.startswith("bertgen: transformers does not find 36 weights of this checkpoint, such as encoder.")


def test_demo(bertgen_compare):
    code, out, _ = bertgen_compare(["Where is the station?", "I have lost my key."], model="demo")
    assert code == 0 and out.startswith("2 texts: 2 outputs equal token for token, 0 not, 0 by more than 0.0001, in ")


def test_a_file_without_texts_is_not_equal(bertgen_compare):
    code, out, err = bertgen_compare([])
    assert (code, out) == (2, "") and err.endswith("texts.txt: no texts\n")


def test_without_transformers(bertgen_compare, generator, tiny_checkpoint, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    code, out, err = bertgen_compare(["one"])
    assert (code, out) == (2, "") and "a comparison needs a package that cannot be imported" in err
    assert err.endswith("pip install 'transformers>=5.16'\n")
    with pytest.raises(BackendError):
        compare.compare(generator, tiny_checkpoint, ["one"])


def test_checkpoint_that_only_transformers_cannot_load(generator, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="transformers cannot load"):
        compare.compare(generator, tmp_path, ["one"])


@pytest.mark.parametrize(
    "lines, arguments, message",
    [
        (["one"], ["--do-sample"], "--do-sample: the draws differ"),
        (["one"], ["--num-beams", "4", "--num-beam-groups", "2"], "--num-beam-groups 2: transformers"),
        (["one"], ["--margin", "-1"], "--margin must be a number from 0, got -1.0"),
        (["one"], ["--margin", "nan"], "--margin must be a number from 0, got nan"),
        (["one"], ["--batch-size", "0"], "--batch-size must be an integer from 1 to 2147483647, got 0"),
        (["one", b"\xff"], [], "texts.txt, line 2: not UTF-8"),
        ([b"\x1f\x8b\x08"], [], "texts.txt is compressed by gzip"),
        (["one", "two", "one " * 60], [], "texts.txt, line 3: 60 tokens, the limit is 48 (--truncate cuts"),
    ],
)
def test_what_cannot_be_compared(bertgen_compare, lines, arguments, message):
    code, out, err = bertgen_compare(lines, *arguments)
    assert (code, out) == (2, "") and message in err


def test_no_texts(bertgen_compare):
    code, out, _ = bertgen_compare(["", " "], "--json")
    assert code == 0 and json.loads(out)["texts"] == 0
