"""The examples of transformers' documentation page of BertGeneration run in bertgen; only their import line is changed.

A hub cache holds tiny models under the names of the page, in the layouts of the real models.
"""

from __future__ import annotations

import json
import re
import shutil
import textwrap
from pathlib import Path

import pytest
import torch
import transformers

from bertgen import BackendError, EncoderDecoderConfig, EncoderDecoderModel
from bertgen.cli import main
from tests.support.bert_checkpoint import make_bert

DISCOFUSE = "google/roberta2roberta_L-24_discofuse"
BERT_LARGE = "google-bert/bert-large-uncased"
BBC_ENCODER = "google/bert_for_seq_generation_L-24_bbc_encoder"
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="checks the error without a GPU")

pytestmark = pytest.mark.filterwarnings("ignore:pytorch_model.bin is a pickle")


def cached(cache: Path, name: str) -> Path:
    """Create a repository with one snapshot in a hub cache; returns the snapshot's folder."""
    commit = "0" * 40
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(commit)
    return snapshot


def write_json(path: Path, **values) -> None:
    path.write_text(json.dumps(values))


def make_discofuse(folder: Path, tiny: Path) -> None:
    """config.json, a pickle, spiece.model and generation_config.json; no tokenizer_config.json."""
    for name in ("config.json", "spiece.model"):
        shutil.copy(tiny / name, folder)
    torch.save(EncoderDecoderModel.from_pretrained(tiny).state_dict(), folder / "pytorch_model.bin")
    special = dict(bos_token_id=2, decoder_start_token_id=2, eos_token_id=1, pad_token_id=0)
    write_json(folder / "generation_config.json", **special, num_beams=4, max_length=40)


def make_bbc_encoder(folder: Path, tiny: Path) -> None:
    """An encoder in a pickle, with an old configuration that lacks several options."""
    half = json.loads((tiny / "config.json").read_text())["encoder"]
    for name in ("bos_token_id", "eos_token_id", "is_decoder", "add_cross_attention"):
        half.pop(name, None)
    write_json(folder / "config.json", **half | {"architectures": ["BertForSeqGenerationEncoderModel"]})
    torch.save(EncoderDecoderModel.from_pretrained(tiny).encoder.state_dict(), folder / "pytorch_model.bin")
    shutil.copy(tiny / "spiece.model", folder)


@pytest.fixture(scope="module")
def filled_cache(tiny_checkpoint, tmp_path_factory):
    cache = tmp_path_factory.mktemp("hub")
    make_discofuse(cached(cache, DISCOFUSE), tiny_checkpoint)
    make_bert(cached(cache, BERT_LARGE))
    make_bbc_encoder(cached(cache, BBC_ENCODER), tiny_checkpoint)
    return cache


@pytest.fixture(autouse=True)
def hub(filled_cache, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(filled_cache))
    return filled_cache


def run(snippet: str) -> dict:
    """Run a snippet with the import changed from transformers to bertgen; returns its variables."""
    code = re.sub(r"^from transformers import", "from bertgen import", textwrap.dedent(snippet), flags=re.MULTILINE)
    names: dict = {}
    exec(compile(code, "the page", "exec"), names)
    return names


PIPELINE = """
    import torch
    from transformers import pipeline

    pipeline = pipeline(
        task="text2text-generation",
        model="google/roberta2roberta_L-24_discofuse",
        dtype=torch.float16,
        device=0
    )
    result = pipeline("Plants create energy through ")
"""


@NO_GPU
def test_pipeline_names_the_missing_device():
    with pytest.raises(BackendError, match=r"cuda:0.*0 CUDA devices"):
        run(PIPELINE)


def test_pipeline_on_the_cpu():
    (result,) = run(PIPELINE.replace("device=0", 'device="cpu"'))["result"]
    assert isinstance(result["generated_text"], str) and result["generated_text"]


def test_model_and_tokenizer(capsys, hub):
    names = run("""
        import torch
        from transformers import EncoderDecoderModel, AutoTokenizer

        model = EncoderDecoderModel.from_pretrained("google/roberta2roberta_L-24_discofuse", dtype="auto")
        tokenizer = AutoTokenizer.from_pretrained("google/roberta2roberta_L-24_discofuse")

        input_ids = tokenizer(
            "Plants create energy through ", add_special_tokens=False, return_tensors="pt"
        ).input_ids

        outputs = model.generate(input_ids)
        print(tokenizer.decode(outputs[0]))
    """)
    printed = capsys.readouterr().out.strip()
    folder = next((hub / f"models--{DISCOFUSE.replace('/', '--')}" / "snapshots").iterdir())
    oracle = transformers.EncoderDecoderModel.from_pretrained(folder)
    tokenizer = transformers.BertGenerationTokenizer(str(folder / "spiece.model"))
    ids = tokenizer("Plants create energy through ", add_special_tokens=False, return_tensors="pt").input_ids
    assert torch.equal(names["input_ids"], ids)
    expected = oracle.generate(ids)
    assert torch.equal(names["outputs"], expected)
    assert printed == tokenizer.decode(expected[0])


def test_command_line(capsys, monkeypatch):
    """echo -e "Plants create energy through " | transformers run --task text2text-generation --model ... --device 0"""
    command = f"run --task text2text-generation --model {DISCOFUSE}".split()

    def piped(*more: str) -> tuple[int, str, str]:
        import io
        import sys

        text = io.TextIOWrapper(io.BytesIO(b"Plants create energy through \n"))
        monkeypatch.setattr(sys, "stdin", text)
        code = main([*command, *more])
        return code, *capsys.readouterr()

    code, out, _ = piped("--device", "cpu")
    assert code == 0 and len(out.splitlines()) == 1 and out.strip()
    if not torch.cuda.is_available():
        code, out, err = piped("--device", "0")
        assert code == 2 and not out and "cuda:0" in err


def test_quantization(tiny_checkpoint, tmp_path, monkeypatch):
    """The rows of the model are multiples of 64, as in every published model."""
    folder, values = cached(tmp_path, DISCOFUSE), json.loads((tiny_checkpoint / "config.json").read_text())
    for half in ("encoder", "decoder"):
        values[half] |= dict(hidden_size=64, intermediate_size=128)
    EncoderDecoderModel(EncoderDecoderConfig.from_dict(values)).save_pretrained(folder)
    shutil.copy(tiny_checkpoint / "spiece.model", folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    names = run("""
        import torch
        from transformers import EncoderDecoderModel, AutoTokenizer, BitsAndBytesConfig

        # Configure 4-bit quantization
        quantization_config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_compute_dtype=torch.float16
        )

        model = EncoderDecoderModel.from_pretrained(
            "google/roberta2roberta_L-24_discofuse",
            quantization_config=quantization_config,
            dtype="auto"
        )
        tokenizer = AutoTokenizer.from_pretrained("google/roberta2roberta_L-24_discofuse")

        input_ids = tokenizer(
            "Plants create energy through ", add_special_tokens=False, return_tensors="pt"
        ).input_ids

        outputs = model.generate(input_ids)
        print(tokenizer.decode(outputs[0]))
    """)
    assert names["model"].quantization.format == "fp4" and names["outputs"].shape[0] == 1


def test_warm_start_and_training():
    names = run("""
        from transformers import BertGenerationEncoder, BertGenerationDecoder, BertTokenizer, EncoderDecoderModel

        # leverage checkpoints for Bert2Bert model
        # use BERT's cls token as BOS token and sep token as EOS token
        encoder = BertGenerationEncoder.from_pretrained("google-bert/bert-large-uncased", bos_token_id=101, eos_token_id=102)
        # add cross attention layers and use BERT's cls token as BOS token and sep token as EOS token
        decoder = BertGenerationDecoder.from_pretrained(
            "google-bert/bert-large-uncased", add_cross_attention=True, is_decoder=True, bos_token_id=101, eos_token_id=102
        )
        bert2bert = EncoderDecoderModel(encoder=encoder, decoder=decoder)

        # create tokenizer
        tokenizer = BertTokenizer.from_pretrained("google-bert/bert-large-uncased")

        input_ids = tokenizer(
            "This is a long article to summarize", add_special_tokens=False, return_tensors="pt"
        ).input_ids
        labels = tokenizer("This is a short summary", return_tensors="pt").input_ids

        # train
        loss = bert2bert(input_ids=input_ids, decoder_input_ids=labels, labels=labels).loss
        loss.backward()
    """)  # noqa: E501
    assert names["input_ids"].shape == (1, 7)
    assert names["labels"][0, 0] == 101 and names["labels"][0, -1] == 102
    assert names["loss"].isfinite() and all(p.grad is not None for p in names["bert2bert"].parameters())


def test_configuration():
    with torch.device("meta"):  # without memory for a third of a billion weights
        names = run("""
            from transformers import BertGenerationConfig, BertGenerationEncoder

            # Initializing a BertGeneration config
            configuration = BertGenerationConfig()

            # Initializing a model (with random weights) from the config
            model = BertGenerationEncoder(configuration)

            # Accessing the model configuration
            configuration = model.config
        """)
    assert names["configuration"].hidden_size == 1024 and len(names["model"].encoder.layer) == 24


def test_decoder():
    names = run("""
        from transformers import AutoTokenizer, BertGenerationDecoder, BertGenerationConfig
        import torch

        tokenizer = AutoTokenizer.from_pretrained("google/bert_for_seq_generation_L-24_bbc_encoder")
        config = BertGenerationConfig.from_pretrained("google/bert_for_seq_generation_L-24_bbc_encoder")
        config.is_decoder = True
        model = BertGenerationDecoder.from_pretrained(
            "google/bert_for_seq_generation_L-24_bbc_encoder", config=config
        )

        inputs = tokenizer("Hello, my dog is cute", return_token_type_ids=False, return_tensors="pt")
        outputs = model(**inputs)

        prediction_logits = outputs.logits
    """)
    logits, length = names["prediction_logits"], names["inputs"].input_ids.shape[1]
    assert logits.shape == (1, length, names["config"].vocab_size) and logits.isfinite().all()
