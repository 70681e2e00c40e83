"""Which class AutoTokenizer takes: by the names in the files, by the model, and by the vocabulary that is there."""

import io
import json
import shutil

import pytest
import sentencepiece
import tokenizers
import transformers

from bertgen.errors import CheckpointError, ConfigError, UnsupportedError
from bertgen.tokenizer import AutoTokenizer, BertGenerationTokenizer, BertTokenizer, RobertaTokenizer
from tests.support.fast_tokenizers import (
    BERT_SPECIAL,
    assert_equivalent,
    corpus,
    write_bert_vocabulary,
    write_roberta_vocabulary,
)

ENCODER_DECODER = {"model_type": "encoder-decoder", "is_encoder_decoder": True}


@pytest.fixture(scope="session")
def vocabularies(tmp_path_factory):
    """A folder with the files of every class."""
    folder = tmp_path_factory.mktemp("auto")
    write_bert_vocabulary(folder / "bert")
    write_roberta_vocabulary(folder / "roberta")
    writer = io.BytesIO()
    options = dict(vocab_size=300, pad_id=0, eos_id=1, bos_id=2, unk_id=3, minloglevel=2)
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(corpus()), model_writer=writer, **options)
    files = folder / "files"
    files.mkdir()
    (files / "spiece.model").write_bytes(writer.getvalue())
    shutil.copy(folder / "bert/vocab.txt", files)
    shutil.copy(folder / "roberta/vocab.json", files)
    shutil.copy(folder / "roberta/merges.txt", files)
    BertTokenizer(files / "vocab.txt").save_pretrained(folder / "bert")
    RobertaTokenizer(files / "vocab.json", files / "merges.txt").save_pretrained(folder / "roberta")
    shutil.copy(folder / "bert/tokenizer.json", files / "tokenizer.json of bert")
    shutil.copy(folder / "roberta/tokenizer.json", files / "tokenizer.json of roberta")
    return files


def folder_with(path, vocabularies, names, files):
    for name in names:
        shutil.copy(vocabularies / name, path / name.split(" ")[0])
    for name, content in files.items():
        (path / name).write_text(json.dumps(content))
    return path


def of_class(name):
    return {"tokenizer_config.json": {"tokenizer_class": name}}


def model(model_type, **further):
    return {"config.json": {"model_type": model_type, **further}}


def halves(model_type, **further):
    half = {"model_type": model_type}
    return {"config.json": {**ENCODER_DECODER, "encoder": half, "decoder": {"model_type": "bert"}, **further}}


SPIECE, BERT, ROBERTA = ["spiece.model"], ["vocab.txt"], ["vocab.json", "merges.txt"]
EVERY = [*SPIECE, *BERT, *ROBERTA]


@pytest.mark.parametrize(
    ("names", "files", "expected"),
    [
        (SPIECE, {}, BertGenerationTokenizer),
        (EVERY, {}, BertGenerationTokenizer),
        (EVERY, model("bert-generation"), BertGenerationTokenizer),
        (EVERY, model("bert"), BertTokenizer),
        (EVERY, model("roberta"), RobertaTokenizer),
        (EVERY, halves("bert-generation"), BertGenerationTokenizer),
        (EVERY, halves("bert"), BertTokenizer),
        (EVERY, halves("roberta"), RobertaTokenizer),
        # What config.json says wins over the model, and tokenizer_config.json over both.
        (EVERY, halves("bert-generation", tokenizer_class="BertTokenizer"), BertTokenizer),
        (EVERY, model("bert-generation", tokenizer_class="RobertaTokenizerFast"), RobertaTokenizer),
        (EVERY, of_class("BertTokenizer") | model("roberta"), BertTokenizer),
        (EVERY, of_class("RobertaTokenizer") | model("bert", tokenizer_class="BertTokenizer"), RobertaTokenizer),
        (EVERY, of_class("BertTokenizerFast"), BertTokenizer),
        (EVERY, of_class("RobertaTokenizerFast"), RobertaTokenizer),
        (EVERY, of_class("BertGenerationTokenizerFast") | model("bert"), BertGenerationTokenizer),
        # The vocabulary of that class is not there.
        (BERT, {}, BertTokenizer),
        (ROBERTA, {}, RobertaTokenizer),
        (["tokenizer.json of bert"], model("bert-generation"), BertTokenizer),
        (["tokenizer.json of roberta"], model("bert-generation"), RobertaTokenizer),
        (["tokenizer.json of roberta"], model("bert"), RobertaTokenizer),
        (["tokenizer.json of roberta", *BERT], model("bert-generation"), RobertaTokenizer),
        (BERT, halves("bert-generation"), BertTokenizer),
        (SPIECE, halves("bert-generation", tokenizer_class="BertTokenizer"), BertGenerationTokenizer),
        (ROBERTA, of_class("BertTokenizer"), RobertaTokenizer),
    ],
)
def test_classes(vocabularies, tmp_path, names, files, expected):
    folder = folder_with(tmp_path, vocabularies, names, files)
    assert type(AutoTokenizer.from_pretrained(folder)) is expected
    assert AutoTokenizer.from_pretrained(folder, model_max_length=7).model_max_length == 7


@pytest.mark.parametrize(
    ("names", "files", "error", "message"),
    [
        (EVERY, of_class("T5TokenizerFast"), UnsupportedError, "has a tokenizer T5TokenizerFast; bertgen has Bert"),
        (EVERY, model("whisper"), UnsupportedError, "'whisper'"),
        (EVERY, halves("gpt2"), UnsupportedError, "'gpt2'"),
        (EVERY, model("bert", tokenizer_class="XLNetTokenizer"), UnsupportedError, "XLNetTokenizer"),
        ([], model("bert-generation"), CheckpointError, r"has no spiece\.model"),
        ([], model("bert"), CheckpointError, r"has no vocab\.txt.*tokenizer\.json would do"),
        # Two classes have a vocabulary.
        ([*BERT, *ROBERTA], model("bert-generation"), CheckpointError, r"has no spiece\.model"),
        (["vocab.json"], model("bert-generation"), CheckpointError, r"has no spiece\.model"),
        (EVERY, of_class("TokenizersBackend"), CheckpointError, r"has no tokenizer\.json"),
    ],
)
def test_what_it_refuses(vocabularies, tmp_path, names, files, error, message):
    with pytest.raises(error, match=message):
        AutoTokenizer.from_pretrained(folder_with(tmp_path, vocabularies, names, files))


def test_single_files(vocabularies, tmp_path):
    for name, expected in (
        ("spiece.model", BertGenerationTokenizer),
        ("vocab.txt", BertTokenizer),
        ("tokenizer.json of bert", BertTokenizer),
        ("tokenizer.json of roberta", RobertaTokenizer),
    ):
        folder_with(tmp_path, vocabularies, [name], {})
        assert type(AutoTokenizer.from_pretrained(tmp_path / name.split(" ")[0])) is expected


def test_as_transformers_chooses(vocabularies, tmp_path):
    for count, (names, files) in enumerate(
        (
            (EVERY, halves("bert-generation")),
            (EVERY, halves("bert-generation", tokenizer_class="BertTokenizer")),
            (EVERY, model("roberta")),
            (["tokenizer.json of bert"], of_class("BertTokenizer")),
        )
    ):
        folder = tmp_path / str(count)
        folder.mkdir()
        folder_with(folder, vocabularies, names, files)
        ours, theirs = AutoTokenizer.from_pretrained(folder), transformers.AutoTokenizer.from_pretrained(folder)
        assert type(ours).__name__ == type(theirs).__name__
        texts = corpus()[:20]
        assert ours(texts).input_ids == theirs(texts)["input_ids"]


# -- Google's translation checkpoints ---------------------------------------------------------------------------------


@pytest.mark.parametrize("held", [True, False])
def test_the_translation_checkpoints(tmp_path, held):
    """Halves of type bert-generation, "BertTokenizer" in config.json, a cased vocab.txt, tokens named in the call."""
    special = ["<pad>", "<s>", "</s>"] if held else []
    folder = write_bert_vocabulary(tmp_path / "wmt", cased=True, special=[*BERT_SPECIAL, *special])
    folder_with(folder, folder, [], halves("bert-generation", tokenizer_class="BertTokenizer"))
    tokens = dict(pad_token="<pad>", eos_token="</s>", bos_token="<s>")
    with pytest.warns(UserWarning, match="do_lower_case=False is probably right"):
        ours = AutoTokenizer.from_pretrained(folder, **tokens)
    theirs = transformers.AutoTokenizer.from_pretrained(folder, **tokens)
    assert_equivalent(ours, theirs)
    assert len(ours) == 400 + (0 if held else 3)
    assert [ours.pad_token_id, ours.bos_token_id, ours.eos_token_id] == ([5, 6, 7] if held else [402, 400, 401])
    options = dict(return_tensors="pt", add_special_tokens=False, padding=True)
    actual, expected = ours(["The Äu", "a"], **options), theirs(["The Äu", "a"], **options)
    assert all(bool((actual[key] == expected[key]).all()) for key in expected)
    ours, theirs = (
        one.from_pretrained(folder, do_lower_case=False, **tokens)
        for one in (AutoTokenizer, transformers.AutoTokenizer)
    )
    assert_equivalent(ours, theirs)
    assert ours.decode(ours.encode("The station", add_special_tokens=False)) == "The station"


# -- a tokenizer.json without a class ---------------------------------------------------------------------------------


def saved_by_transformers(path, ours, tmp_path, **options):
    """What transformers 5 writes for a tokenizer.json that has no class."""
    ours.save_pretrained(tmp_path / "pipeline")
    names = {name: token for name, token in ours.special_tokens_map.items()}
    file = str(tmp_path / "pipeline" / "tokenizer.json")
    transformers.PreTrainedTokenizerFast(tokenizer_file=file, **names, **options).save_pretrained(path)
    return path


@pytest.mark.parametrize("options", [{}, dict(do_lower_case=False), dict(strip_accents=False)])
def test_a_bert_pipeline(vocabularies, tmp_path, options):
    folder = saved_by_transformers(tmp_path, BertTokenizer(vocabularies / "vocab.txt", **options), tmp_path)
    ours, theirs = AutoTokenizer.from_pretrained(folder), transformers.AutoTokenizer.from_pretrained(folder)
    assert type(ours) is BertTokenizer and type(theirs).__name__ == "TokenizersBackend"
    assert_equivalent(ours, theirs)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    assert AutoTokenizer.from_pretrained(folder, model_max_length=5).encode("Äu") == theirs.encode("Äu")


@pytest.mark.parametrize("prefix", [False, True])
def test_a_roberta_pipeline(vocabularies, tmp_path, prefix):
    tokenizer = RobertaTokenizer(
        vocabularies / "vocab.json", vocabularies / "merges.txt", add_prefix_space=prefix, trim_offsets=prefix
    )
    folder = saved_by_transformers(tmp_path, tokenizer, tmp_path)
    ours, theirs = AutoTokenizer.from_pretrained(folder), transformers.AutoTokenizer.from_pretrained(folder)
    assert type(ours) is RobertaTokenizer and ours.add_prefix_space == prefix
    assert_equivalent(ours, theirs)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("post_processor", None),
        ("normalizer", tokenizers.normalizers.NFKC()),
        ("pre_tokenizer", tokenizers.pre_tokenizers.Whitespace()),
        ("decoder", tokenizers.decoders.WordPiece(cleanup=False)),
        ("model", tokenizers.models.WordPiece),
    ],
)
def test_another_pipeline_is_refused(vocabularies, tmp_path, part, value):
    """Rather than read as if it were BERT's."""
    library = tokenizers.Tokenizer.from_file(str(vocabularies / "tokenizer.json of bert"))
    if part == "model":
        value = value(library.get_vocab(), unk_token="[UNK]", max_input_chars_per_word=5)
    setattr(library, part, value)
    library.save(str(tmp_path / "tokenizer.json"))
    folder_with(tmp_path, vocabularies, [], of_class("TokenizersBackend"))
    with pytest.raises(UnsupportedError, match=f"WordPiece model with another {part} than BertTokenizer's"):
        AutoTokenizer.from_pretrained(tmp_path)


def test_a_pipeline_of_another_kind(vocabularies, tmp_path):
    folder_with(tmp_path, vocabularies, [], of_class("PreTrainedTokenizerFast"))
    tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, "a")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UnsupportedError, match="holds a WordLevel"):
        AutoTokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"type": "WordPiece"}}))
    with pytest.raises(CheckpointError, match="no usable tokenizer"):
        AutoTokenizer.from_pretrained(tmp_path)


def test_an_unknown_option_is_named(vocabularies, tmp_path):
    folder_with(tmp_path, vocabularies, BERT, {})
    with pytest.raises(ConfigError, match="BertTokenizer has no option 'dolowercase'"):
        AutoTokenizer.from_pretrained(tmp_path, dolowercase=False)
