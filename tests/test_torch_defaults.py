"""torch's default dtype and device, and its other switches, change no result: every tensor names its own."""

import ast
import contextlib
import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from bertgen import (
    AutoTokenizer,
    BertConfig,
    BertLMHeadModel,
    BertModel,
    BitsAndBytesConfig,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    Generator,
    Int4Config,
    accelerate,
    pipeline,
)
from bertgen.convert import convert
from bertgen.trainer import Trainer, TrainingConfig

ROOT = Path(__file__).parents[1]
# All but what makes arguments for tests.
SOURCES = [
    path
    for folder in ("bertgen", "kernels")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if not path.stem.endswith("_cases")
]
OF_DEFAULT_DTYPE = {"tensor", "scalar_tensor", "zeros", "ones", "empty", "full", "rand", "randn", "linspace", "eye"}
OF_DEFAULT_DTYPE |= {"empty_permuted", "empty_strided", "logspace", "normal", "range"}
# int64, or that of the argument
OF_OTHER_DTYPE = {"arange", "randint", "randperm", "as_tensor", "asarray", "tril_indices", "triu_indices"}
PARAMETERS = {"Parameter", "register_buffer"}  # those of a new model are made in torch's defaults, as in any module


def unnamed(source):
    """Calls that make a tensor from nothing and leave its dtype or its device to torch's defaults."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "torch":
            names = {alias.name for alias in node.names} & (OF_DEFAULT_DTYPE | OF_OTHER_DTYPE)
            yield from (f"line {node.lineno}: torch.{name} under another name" for name in sorted(names))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    inside = {id(part) for call in calls if call.func.attr in PARAMETERS for part in ast.walk(call)}
    for call in calls:
        name = call.func.attr
        if ast.unparse(call.func) == "torch.Tensor":
            yield f"line {call.lineno}: torch.Tensor has no dtype"
        if ast.unparse(call.func.value) != "torch" or name not in OF_DEFAULT_DTYPE | OF_OTHER_DTYPE:
            continue
        needed = {"device", "dtype"} if name in OF_DEFAULT_DTYPE else {"device"}
        missing = needed - {keyword.arg for keyword in call.keywords}
        if missing and id(call) not in inside:
            yield f"line {call.lineno}: torch.{name} without {', '.join(sorted(missing))}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_tensor_made_from_nothing_names_its_dtype_and_device(path):
    assert not list(unnamed(path.read_text(encoding="utf-8")))


def test_the_search_for_unnamed_defaults_sees_them():
    source = """torch.zeros(3)
torch.arange(2, device=d)
torch.full((1,), 2, device=d)
nn.Parameter(torch.ones(2))
torch.Tensor(3)
from torch import nn, zeros
torch.tril_indices(2, 2)
"""
    assert sorted(unnamed(source)) == [
        "line 1: torch.zeros without device, dtype",
        "line 3: torch.full without dtype",
        "line 5: torch.Tensor has no dtype",
        "line 6: torch.zeros under another name",
        "line 7: torch.tril_indices without device",
    ]


@dataclasses.dataclass
class Made:
    """Inputs of the calls below, made before any switch is set."""

    path: Path
    scratch: Path

    def __post_init__(self):
        self.model = EncoderDecoderModel.from_pretrained(self.path)
        self.generator, self.tokenizer = Generator(self.path), AutoTokenizer.from_pretrained(self.path)
        self.accelerated = accelerate(transformers.EncoderDecoderModel.from_pretrained(self.path).eval())
        batch = self.tokenizer(["one white dog", "five"], padding=True, return_tensors="pt")
        self.ids, self.mask = batch.input_ids, batch.attention_mask
        self.labels = self.tokenizer(["eins weiß hund", "fünf"], padding=True, return_tensors="pt").input_ids
        self.wide = self.scratch / "wide"  # large enough for weights in 4 bits
        half = BertConfig(vocab_size=90, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, hidden_act="xielu",
                          intermediate_size=64, max_position_embeddings=40)  # fmt: skip
        torch.manual_seed(0)
        config = EncoderDecoderConfig.from_encoder_decoder_configs(half, copy.deepcopy(half), pad_token_id=0)
        config.decoder_start_token_id, config.eos_token_id = 1, 2
        EncoderDecoderModel(config).save_pretrained(self.wide)
        model = EncoderDecoderModel.from_pretrained(self.wide)
        model.encoder.save_pretrained(self.scratch / "half")
        for name, chosen in (("int4", Int4Config()), ("nf4", BitsAndBytesConfig(load_in_4bit=True))):
            rounded = EncoderDecoderModel.from_pretrained(self.wide, quantization_config=chosen)
            rounded.save_pretrained(self.scratch / name)
        lines = "".join(f"{s}\t{t}\n" for s, t in [("one two", "eins zwei"), ("red dog", "rot hund"), ("six", "sechs")])
        (self.scratch / "pairs.tsv").write_text(lines * 8)

    def generated(self, model, **options):
        torch.manual_seed(5)
        return model.generate(self.ids, attention_mask=self.mask, max_new_tokens=9, **options)

    def trained(self):
        folder = self.scratch / f"run{len(list(self.scratch.iterdir()))}"
        pairs = str(self.scratch / "pairs.tsv")
        Trainer(
            TrainingConfig(
                train=pairs, dev=pairs, output=str(folder), vocab_size=24, max_length=16, layers=1, hidden=32, heads=2,
                intermediate=64, positions=16, batch_tokens=64, steps=3, epochs=None, average=0.9, evaluate_every=2,
                quiet=True, device="cpu",
            )
        ).train()  # fmt: skip
        return EncoderDecoderModel.from_pretrained(folder / "best").state_dict()

    def loaded(self, path, **options):
        model = EncoderDecoderModel.from_pretrained(path, **options)
        return model.state_dict(), self.generated(model, do_sample=True)

    def warm(self):
        torch.manual_seed(1)
        half = str(self.scratch / "half")
        model = EncoderDecoderModel.from_encoder_decoder_pretrained(half, half, decoder_start_token_id=1)
        return model.state_dict()

    def learned(self, model):
        model = copy.deepcopy(model).train()
        output = model(input_ids=self.ids, attention_mask=self.mask, labels=self.labels)
        output.loss.backward()
        return output.loss, output.logits, [p.grad for p in model.parameters()]

    def resized(self):
        decoder = BertLMHeadModel.from_pretrained(self.scratch / "half", is_decoder=True)
        decoder.resize_token_embeddings(100)
        encoder = BertModel.from_pretrained(self.scratch / "half")
        encoder.resize_token_embeddings(100, mean_resizing=False)
        return decoder.get_input_embeddings().weight, decoder.get_output_embeddings().bias

    def converted(self):
        folder = self.scratch / f"int4-{len(list(self.scratch.iterdir()))}"
        convert(self.path, folder, to="bertgen")
        return EncoderDecoderModel.from_pretrained(folder).state_dict()

    def submitted(self):
        tokens = []
        future = self.generator.submit("one two", on_tokens=tokens.append, seed=1)
        return future.result(60).text, tokens


RULES = dict(
    repetition_penalty=1.3, no_repeat_ngram_size=2, bad_words_ids=[[5], [6, 7]], sequence_bias={(8, 9): 0.5, (4,): -1},
    exponential_decay_length_penalty=(3, 1.2), suppress_tokens=[11], min_new_tokens=3, remove_invalid_values=True,
    encoder_repetition_penalty=1.1, renormalize_logits=True,
)  # fmt: skip
GROUPS = dict(num_beams=4, num_beam_groups=2, diversity_penalty=0.3, length_penalty=0.6, early_stopping=True)
WARPS = dict(do_sample=True, temperature=0.8, top_k=20, top_p=0.9, typical_p=0.95, min_p=0.01, eta_cutoff=1e-4)
ALL = dict(return_dict_in_generate=True, output_scores=True, output_logits=True, output_attentions=True,
           output_hidden_states=True)  # fmt: skip
TEXTS = ["one two", "white dog", "", "five black six"]
CALLS = {
    "load": lambda made: made.loaded(made.path),
    "load half precision": lambda made: made.loaded(made.path, dtype="bfloat16"),
    "load and round": lambda made: made.loaded(made.wide, quantization_config=Int4Config(double_quant=False)),
    "load and round as nf4": lambda made: made.loaded(made.wide, quantization_config=Int4Config(format="nf4")),
    "load int4": lambda made: made.loaded(made.scratch / "int4"),
    "load nf4": lambda made: made.loaded(made.scratch / "nf4"),
    "dequantize": lambda made: EncoderDecoderModel.from_pretrained(made.scratch / "int4").dequantize().state_dict(),
    "double quantization": lambda made: made.loaded(
        made.wide, quantization_config=Int4Config(format="nf4", double_quant=True)
    ),
    "warm start": Made.warm,
    "resize": Made.resized,
    "forward": lambda made: vars(made.model(made.ids, made.mask, labels=made.labels, output_attentions=True)),
    "continued forward": lambda made: made.model(made.ids, decoder_input_ids=made.labels, use_cache=True).logits,
    "backward": lambda made: made.learned(made.model),
    "greedy": lambda made: made.generated(made.model, **ALL),
    "greedy with rules": lambda made: made.generated(made.model, **RULES),
    "beams": lambda made: made.generated(made.model, num_beams=3, num_return_sequences=2, **ALL),
    "beams with rules": lambda made: made.generated(made.model, **GROUPS, **RULES),
    "sampled": lambda made: made.generated(made.model, num_return_sequences=2, **WARPS),
    "sampled beams": lambda made: made.generated(made.model, num_beams=3, **WARPS),
    "stop strings": lambda made: made.generated(made.model, stop_strings=["weiß"], tokenizer=made.tokenizer),
    "constraint": lambda made: made.generated(
        made.model, num_beams=2, prefix_allowed_tokens_fn=lambda source, ids: [*range(3, 30), 1]
    ),
    "criterion": lambda made: made.generated(made.model, stopping_criteria=[lambda ids, scores: ids.shape[1] > 4]),
    "transition scores": lambda made: made.model.compute_transition_scores(
        *made.generated(made.model, **ALL).to_tuple()[:2], normalize_logits=True
    ),
    "accelerated": lambda made: (made.generated(made.accelerated), made.generated(made.accelerated, num_beams=3)),
    "accelerated backward": lambda made: made.learned(made.accelerated)[:2],
    "generator": lambda made: made.generator.generate(TEXTS, scores=True),
    "generator beams": lambda made: made.generator.generate(TEXTS, num_beams=3, num_return_sequences=2),
    "generator sampled": lambda made: made.generator.generate(TEXTS, seed=3, scores=True, **WARPS),
    "generator with rules": lambda made: made.generator.generate(TEXTS, **RULES),
    "new generator": lambda made: Generator(made.path, max_rows=2).generate(TEXTS),
    "submit": Made.submitted,
    "score": lambda made: made.generator.score(["one", "two"], ["eins", "drei"]),
    "pipeline": lambda made: pipeline(model=made.path)(["one two"], num_beams=2),
    "tokenizer": lambda made: dict(made.tokenizer(TEXTS, padding=True, return_tensors="pt")),
    "convert": Made.converted,
    "train": Made.trained,
}


@contextlib.contextmanager
def default_dtype(dtype):
    former = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(former)


@contextlib.contextmanager
def default_device(device):
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


SWITCHES = {
    "default dtype float64": lambda: default_dtype(torch.float64),
    "default dtype bfloat16": lambda: default_dtype(torch.bfloat16),
    "default device meta": lambda: default_device("meta"),
    "within torch.device('meta')": lambda: torch.device("meta"),
    "within torch.device('cpu')": lambda: torch.device("cpu"),
    "deterministic algorithms": deterministic,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
}


@pytest.fixture(scope="module")
def made(tiny_checkpoint, tmp_path_factory):
    return Made(tiny_checkpoint, tmp_path_factory.mktemp("scratch"))


@pytest.fixture(scope="module")
def usual(made):
    """Results of the calls without a switch, each computed on first use."""
    results = {}

    def of(call):
        if call not in results:
            results[call] = CALLS[call](made)
        return results[call]

    return of


def assert_same(one, other, where="", tolerance=0.0):
    """Equal, by default to the last bit, dtypes and devices included."""
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert (one.dtype, one.device, one.shape) == (other.dtype, other.device, other.shape), where
        assert torch.allclose(one, other, rtol=0, atol=tolerance, equal_nan=True), where
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype and np.array_equal(one, other), where
    elif isinstance(one, dict):
        assert list(one) == list(other), where
        for name in one:
            assert_same(one[name], other[name], f"{where}.{name}", tolerance)
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for place, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where}[{place}]", tolerance)
    elif hasattr(one, "__dict__") and not callable(getattr(one, "begin", None)):
        assert_same(vars(one), vars(other), f"{where}.{type(one).__name__}", tolerance)
    elif not hasattr(one, "begin"):  # a cache
        assert one == other, where


GRADIENTS = ("backward", "train")


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("switch", SWITCHES)
def test_no_switch_of_torch_changes_a_result(switch, call, made, usual):
    if switch in ("no_grad", "inference_mode") and call.endswith(GRADIENTS):
        pytest.skip("gradients were switched off")
    expected = usual(call)
    with SWITCHES[switch]():
        results = CALLS[call](made)
    # Without gradients forward is decoded by other operators.
    tolerance = 1e-5 if switch in ("no_grad", "inference_mode") and call.endswith("forward") else 0.0
    assert_same(results, expected, tolerance=tolerance)
