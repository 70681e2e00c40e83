"""Training: it learns, it resumes exactly, it refuses what it should, and what it writes is whole."""

import argparse
import contextlib
import dataclasses
import json
import math
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from bertgen import BertGenerationTokenizer, ConfigError, EncoderDecoderModel, InputError, OutputError
from bertgen.errors import BertgenError, CheckpointError
from bertgen.files import text_input
from bertgen.files.line_formats import read_pairs
from bertgen.generator import Generator
from bertgen.metrics import bleu
from bertgen.trainer import Trainer, TrainingConfig, loop, state
from bertgen.trainer import data as trainer_data
from bertgen.trainer.data import Corpus, train_vocabulary
from bertgen.trainer.distributed import Interrupt
from bertgen.trainer.optimization import cross_entropy, learning_rate, make_optimizer, update_average
from bertgen.trainer.report import write_curve


def sentences(count: int, seed: int) -> list[tuple[str, str]]:
    """Four to six words, each place with three words of its own, translated one by one: needs cross-attention."""
    rng = random.Random(seed)
    sources = [[rng.randrange(place, place + 3) for place in range(0, 3 * rng.randint(4, 6), 3)] for _ in range(count)]
    return [tuple(" ".join(chr(first + i) for i in words) for first in (ord("A"), ord("a"))) for words in sources]


def write(path, pairs):
    path.write_text("".join(f"{source}\t{target}\n" for source, target in pairs), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return {"train": write(folder / "train.tsv", sentences(500, 0)), "dev": write(folder / "dev.tsv", sentences(30, 1))}


def config(data, output, **options) -> TrainingConfig:
    tiny = dict(
        vocab_size=42, max_length=16, layers=1, hidden=32, heads=2, intermediate=64, positions=16, batch_tokens=256,
        learning_rate=5e-3, warmup_steps=20, average=0.9, evaluate_every=4, bleu_sentences=0, quiet=True, device="cpu",
    )  # fmt: skip
    return TrainingConfig(**{**data, **tiny, "output": str(output), **options})


def history(output) -> list[dict]:
    return [json.loads(line) for line in (output / "history.jsonl").read_text().splitlines()]


def weights(output) -> dict[str, torch.Tensor]:
    """All tensors of a saved training state by name: weights, their average and the optimizer's moments."""
    saved = state.load_state(output / "state.pt")
    tensors = {f"{part}.{name}": value for part in ("model", "average") for name, value in saved[part].items()}
    for number, moments in saved["optimizer"]["state"].items():
        tensors.update({f"optimizer.{number}.{name}": value for name, value in moments.items()})
    return tensors


def assert_same_state(one, other):
    left, right = weights(one), weights(other)
    assert left.keys() == right.keys() and len(left) > 50
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


# ------------------------------------------------------------------------------------------------- a whole run


@pytest.fixture(scope="module")
def learned(data, tmp_path_factory):
    output = tmp_path_factory.mktemp("learned") / "run"
    shape = dict(hidden=128, heads=4, intermediate=128, dropout=0.0, warmup_steps=80)
    options = dict(steps=160, evaluate_every=40, bleu_sentences=30, save_dtype="float16", **shape)
    return Trainer(config(data, output, **options)).train()


def test_learns_the_task(learned):
    rows = history(learned.output)
    assert [row["step"] for row in rows] == [40, 80, 120, 160]
    assert rows[0]["loss"] > 5 * rows[-1]["loss"] and rows[0]["dev_loss"] > 5 * rows[-1]["dev_loss"]
    assert rows[-1]["bleu"] > 75
    assert learned.best == max(rows, key=lambda row: (row["bleu"], -row["dev_loss"]))
    assert learned.reason == "steps" and not learned.interrupted and learned.step == 160
    assert (learned.output / "loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["best", "last"])
def test_artefacts_are_complete_checkpoints(learned, name):
    folder = learned.output / name
    files = {"config.json", "generation_config.json", "model.safetensors", "spiece.model", "tokenizer_config.json"}
    assert files <= {path.name for path in folder.iterdir()}
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float16"
    model = EncoderDecoderModel.from_pretrained(folder, dtype=torch.float32)
    tokenizer = BertGenerationTokenizer.from_pretrained(folder)
    pairs = sentences(20, 2)
    outputs = Generator(model, tokenizer).generate([s for s, _ in pairs], num_beams=1, max_length=16)
    assert bleu([output.text for output in outputs], [[t] for _, t in pairs]).value > 75
    assert model.generation_config.max_length == 16 and model.generation_config.decoder_start_token_id == 2


def test_best_is_the_average(short):
    saved = state.load_state(short / "state.pt")
    best = EncoderDecoderModel.from_pretrained(short / "best").state_dict()
    assert all(torch.equal(tensor, saved["average"][name]) for name, tensor in best.items())
    assert not all(torch.equal(tensor, saved["model"][name]) for name, tensor in best.items())


def test_nothing_temporary_stays(learned):
    names = {"best", "last", "history.jsonl", "loss.png", "spiece.model", "tokenizer_config.json", "state.pt"}
    assert {path.name for path in learned.output.iterdir()} == names


def test_warm_start_begins_where_the_checkpoint_ended(learned, data, tmp_path):
    shape = {name: TrainingConfig.__dataclass_fields__[name].default for name in ("layers", "hidden", "heads")}
    shape |= {name: TrainingConfig.__dataclass_fields__[name].default for name in ("intermediate", "positions")}
    options = dict(model=str(learned.output / "best"), steps=2, learning_rate=1e-5, **shape)
    trainer = Trainer(config(data, tmp_path / "run", **options))
    result = trainer.train()
    assert result.best["loss"] < 0.3
    assert trainer.model.training and trainer.model.dtype == torch.float32
    assert (tmp_path / "run" / "spiece.model").read_bytes() == (learned.output / "spiece.model").read_bytes()


# ------------------------------------------------------------------------------------------------------ resume

PROCESS = """
import json, sys, torch
from bertgen.trainer import Trainer, TrainingConfig
torch.set_num_threads(1)
Trainer(TrainingConfig(**json.loads(sys.argv[1]))).train()
"""


def start(options: TrainingConfig, **environment: str) -> subprocess.Popen:
    """Train in another process."""
    command = [sys.executable, "-c", PROCESS, json.dumps(dataclasses.asdict(options))]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1", **environment})


def step_of(output) -> int:
    return state.load_state(output / "state.pt")["step"] if (output / "state.pt").exists() else 0


def test_resume_after_sigkill_is_exact(data, tmp_path):
    """A run killed at an arbitrary moment, then resumed, ends with the bits of one that never stopped."""
    killed = config(data, tmp_path / "killed", steps=100_000, save_minutes=0.0, accumulation=2)
    process = start(killed)
    deadline = time.monotonic() + 120
    while step_of(tmp_path / "killed") < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    at = step_of(tmp_path / "killed")
    assert at >= 3
    resumed = dataclasses.replace(killed, steps=at + 5, resume=True)
    assert Trainer(resumed).train().step == at + 5
    Trainer(dataclasses.replace(resumed, output=str(tmp_path / "whole"), resume=False, save_minutes=60)).train()
    assert_same_state(tmp_path / "killed", tmp_path / "whole")
    rows = history(tmp_path / "killed"), history(tmp_path / "whole")
    for row in rows[0] + rows[1]:
        row.pop("seconds")
    assert rows[0] == rows[1] and len(rows[0]) >= 2


def test_a_signal_ends_the_run_after_the_update(data, tmp_path, monkeypatch):
    update = Trainer._update

    def interrupted(self, plan, share):
        if self.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        update(self, plan, share)

    handler = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_update", interrupted)
        result = Trainer(config(data, tmp_path / "run", steps=6)).train()
    assert signal.getsignal(signal.SIGTERM) is handler
    assert (result.reason, result.step, result.interrupted, result.best) == ("SIGTERM", 3, True, None)
    assert (tmp_path / "run" / "last" / "model.safetensors").exists()
    assert Trainer(config(data, tmp_path / "run", steps=6, resume=True)).train().step == 6
    Trainer(config(data, tmp_path / "whole", steps=6)).train()
    assert_same_state(tmp_path / "run", tmp_path / "whole")


def test_a_second_signal_has_its_usual_effect():
    # A process that a shell started in the background ignores the signal otherwise.
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    with Interrupt() as interrupt, pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.number == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    signal.signal(signal.SIGINT, former)


@pytest.fixture(scope="module")
def short(data, tmp_path_factory):
    output = tmp_path_factory.mktemp("short") / "run"
    Trainer(config(data, output, steps=1)).train()
    return output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 1e-3}, "learning_rate was 0.005 and is now 0.001"),
        ({"hidden": 64}, "hidden was 32 and is now 64"),
        ({"accumulation": 3}, "batches per update was 1 and is now 3"),
        ({"dev": None}, "SHA-256 of dev was"),
    ],
)
def test_resume_refuses_another_run(short, data, change, message):
    with pytest.raises(ConfigError, match=message):
        Trainer(config(data, short, steps=2, resume=True, **change)).train()


def test_resume_refuses_other_data(short, data, tmp_path):
    other = {**data, "train": write(tmp_path / "train.tsv", sentences(500, 9))}
    with pytest.raises(ConfigError, match="SHA-256 of train was"):
        Trainer(config(other, short, steps=2, resume=True)).train()


def test_output_of_another_run_is_not_overwritten(short, data):
    with pytest.raises(ConfigError, match=r"holds state\.pt of another run"):
        Trainer(config(data, short, steps=2)).train()


def test_resume_needs_a_state(data, tmp_path):
    with pytest.raises(CheckpointError, match="no training state"):
        Trainer(config(data, tmp_path / "none", steps=2, resume=True)).train()
    tmp_path.joinpath("state.pt").write_bytes(b"half a file")
    with pytest.raises(CheckpointError, match="not a training state"):
        Trainer(config(data, tmp_path, steps=2, resume=True)).train()


# ------------------------------------------------------------------------------------------- processes, batches


def test_two_processes_follow_one_with_accumulation(data, tmp_path, monkeypatch):
    Trainer(config(data, tmp_path / "one", steps=6, evaluate_every=2, accumulation=2)).train()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    network = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    two = config(data, tmp_path / "two", steps=6, evaluate_every=2)
    other = start(two, **network, RANK="1")
    try:
        for name, value in network.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("RANK", "0")
        Trainer(two).train()
        assert other.wait(timeout=60) == 0
    finally:
        other.kill()
        other.wait()
    assert [row["step"] for row in history(tmp_path / "two")] == [2, 4, 6]
    for alone, shared in zip(history(tmp_path / "one"), history(tmp_path / "two")):
        assert alone["loss"] == pytest.approx(shared["loss"], abs=1e-5)
        assert alone["dev_loss"] == pytest.approx(shared["dev_loss"], abs=1e-5)


def gradients(trainer, plan, share):
    """The gradients that the optimizer would get for an update on `share`."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        step = lambda: found.update({n: p.grad.clone() for n, p in trainer.model.named_parameters()})  # noqa: E731
        patch.setattr(trainer.optimizer, "step", step)
        trainer._update(plan, share)
    return found


def test_accumulation_equals_one_big_batch(data, tmp_path):
    trainer = Trainer(config(data, tmp_path / "run", steps=1, dropout=0.0, clip=0.0))
    trainer.train()
    plan = trainer.corpus.plan(256, "some order")
    shortest, longest = (pick(plan, key=trainer.corpus.target_tokens) for pick in (min, max))
    assert trainer.corpus.target_tokens(longest) > 1.5 * trainer.corpus.target_tokens(shortest)
    apart = gradients(trainer, [shortest, longest], range(2))
    together = gradients(trainer, [np.concatenate((shortest, longest))], range(1))
    scale = max(gradient.abs().max() for gradient in together.values())
    for name, gradient in apart.items():
        assert (gradient - together[name]).abs().max() <= 1e-5 * scale, name


def test_plan_is_a_pure_function_that_covers_the_corpus(short, data):
    tokenizer = BertGenerationTokenizer.from_pretrained(short)
    rng = random.Random(0)
    pairs = [(" ".join("A" * rng.randint(1, 9)), " ".join("a" * rng.randint(1, 9))) for _ in range(500)]
    corpus = Corpus(pairs, tokenizer, 32)
    plan, again, other = (corpus.plan(256, seed) for seed in ("1/0", "1/0", "1/1"))
    assert all(map(np.array_equal, plan, again)) and not all(map(np.array_equal, plan, other))
    assert sorted(np.concatenate(plan).tolist()) == list(range(500))
    sizes, labels = [], 0
    for rows in plan:
        batch = corpus.batch(rows, torch.device("cpu"))
        sizes.append(batch.input_ids.numel() + batch.labels.numel())
        labels += int((batch.labels != -100).sum())
        assert corpus.target_tokens(rows) == int((batch.labels != -100).sum())
        assert corpus.source_tokens(rows) == int(batch.attention_mask.sum())
        for line, row in enumerate(rows):
            source, target = pairs[row]
            assert tokenizer.decode(batch.input_ids[line][batch.attention_mask[line] == 1]) == source
            label = batch.labels[line][batch.labels[line] != -100]
            assert label[-1] == tokenizer.eos_token_id and tokenizer.decode(label[:-1]) == target
    assert max(sizes) <= 256 and np.mean(sizes) > 200
    for budget in range(40, 120, 10):
        for rows in corpus.plan(budget, "any"):
            assert len(rows) * (corpus.sources.lengths[rows].max() + corpus.targets.lengths[rows].max()) <= budget
    assert labels / sum(sizes) > 0.45  # half of the pieces are labels: the rest of the other half is padding
    assert [len(rows) for rows in corpus.plan(1)] == [1] * 500


def test_pairs_that_are_too_long_are_counted(short, data):
    tokenizer = BertGenerationTokenizer.from_pretrained(short)
    pairs = [("A E", "a e"), ("A " * 9, "b"), ("A", "b " * 9)]
    corpus = Corpus(pairs, tokenizer, 8)
    assert (len(corpus), corpus.skipped, corpus.pairs) == (1, 2, pairs[:1])
    with pytest.raises(InputError, match="all 2 pairs are longer than max_length=8"):
        Corpus(pairs[1:], tokenizer, 8)


# ------------------------------------------------------------------------------------------------------- input


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a\tb\nno tab\n", r"line 2: 1 tab-separated columns, 2 needed: 'no tab'"),
        (b"a\tb\n\na\tb\n", r"line 2: 1 tab-separated columns"),
        (b"a\tb\na\t \n", r"line 2: the target is empty"),
        (b"a\tb\na\tb\n\tb\n", r"line 3: the source is empty"),
        (b"a\tb\n\xff\tb\n", r"line 2: not UTF-8: invalid start byte at byte 0"),
        (b"", r"no pairs"),
    ],
)
def test_malformed_data_names_file_and_line(tmp_path, text, message):
    path = tmp_path / "pairs.tsv"
    path.write_bytes(text)
    with pytest.raises(InputError, match=r"pairs\.tsv(, |: )" + message):
        read_pairs(path)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"a\tb\n\nc\td\n", "line 2: 1 tab-separated columns"),
        ("a\tb\n".encode("utf-16"), "train.tsv is UTF-16"),
        (b"\x1f\x8b\x08\x00", "train.tsv is compressed by gzip"),
        (b"a\tb\n" + b"x" * 200 + b"\tb\n", "line 2: 203 bytes, the limit of a line is 100"),
    ],
)
def test_what_is_no_text_or_does_not_end_is_named(tmp_path, monkeypatch, content, message):
    monkeypatch.setattr(text_input, "LINE_BYTES", 100)
    (tmp_path / "train.tsv").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_pairs(tmp_path / "train.tsv")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".gz"])
def test_other_kinds_of_files_are_refused_by_name(tmp_path, suffix):
    (tmp_path / f"train{suffix}").write_bytes(b"a\tb\n")
    with pytest.raises(ConfigError, match=f"{suffix} is not read here, but tsv and text are"):
        read_pairs(tmp_path / f"train{suffix}")
    (tmp_path / "train.de-en").write_bytes(b"a\tb\n\n \n")
    assert read_pairs(tmp_path / "train.de-en") == [("a", "b")], "blank lines at the end are no lines"


@pytest.mark.parametrize("side, pair", [("source", "\u200b\u200b\ta"), ("target", "A\t\u200b\ufeff")])
@pytest.mark.parametrize("part", ["train", "dev"])
def test_a_pair_without_tokens_is_named_before_training_begins(data, tmp_path, side, pair, part):
    """As one of nothing but zero-width characters: no tokens give no shape, and in a large batch nobody would know."""
    with open(data[part], encoding="utf-8") as file:
        lines = file.read().splitlines()
    lines.insert(7, pair)
    (tmp_path / "odd.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    trainer = Trainer(config({**data, part: str(tmp_path / "odd.tsv")}, tmp_path / "out", steps=1))
    with pytest.raises(InputError, match=f"odd.tsv, line 8: the {side} has no tokens"):
        trainer.train()
    assert not (tmp_path / "out/state.pt").exists()


@pytest.mark.parametrize("name", ["spiece.model", "state.pt", "best"])
def test_a_full_disk_is_named(data, tmp_path, monkeypatch, name):
    """The file that could not be written, and what the system says, whoever writes it."""

    def limited(write):
        @contextlib.contextmanager
        def call(path):
            soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000 if path.name == name else soft, hard))
            try:
                with write(path) as place:
                    yield place
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

        return call

    for module, write in ((trainer_data, "atomic_write"), (state, "atomic_write"), (loop, "atomic_directory")):
        monkeypatch.setattr(module, write, limited(getattr(module, write)))
    with pytest.raises(OutputError, match=rf"{tmp_path}/out/{name}[\w./]* cannot be written: File too large"):
        Trainer(config(data, tmp_path / "out", steps=1)).train()
    assert not list((tmp_path / "out").glob(".*"))


def test_columns_line_ends_and_byte_order_mark(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_bytes("\ufeff1\tja\tyes\r\n2\tnein\u2028!\tno\r\n".encode())
    assert read_pairs(path, 3, 2) == [("yes", "ja"), ("no", "nein\u2028!")]
    with pytest.raises(InputError, match=r"missing\.tsv cannot be read: No such file"):
        read_pairs(tmp_path / "missing.tsv")


def test_vocabulary_has_the_special_tokens_at_their_places(short, tmp_path):
    tokenizer = BertGenerationTokenizer.from_pretrained(short)
    assert len(tokenizer) == 42
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 3, 4]) == ["<pad>", "</s>", "<s>", "<unk>", "<::::>"]
    assert tokenizer.pad_token_id == 0 and tokenizer.eos_token_id == 1 and tokenizer.bos_token_id == 2
    with pytest.raises(
        ConfigError, match=r"vocab_size=5000: Vocabulary size too high \(5000\)\. Please set it to a value <= \d+"
    ):
        train_vocabulary(sentences(10, 0), 5000, tmp_path / "spiece.model")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 0}, "layers=0: must be at least 1"),
        ({"dropout": 1.0}, r"dropout=1.0: must be in \[0, 1\)"),
        ({"schedule": "step"}, "schedule='step': must be one of inverse-sqrt, linear, cosine"),
        ({"schedule": "linear"}, "decay_steps=None"),
        ({"schedule": "linear", "decay_steps": 20}, "warmup_steps=20: must be below decay_steps=20"),
        ({"heads": 3}, "hidden=32: must be a multiple of heads=3"),
        ({"max_length": 17}, "max_length=17: must be at most positions=16"),
        ({"steps": None}, "no end"),
        ({"model": "some/checkpoint"}, "layers=1: must be left out with model='some/checkpoint'"),
        ({"learning_rate": math.nan}, "learning_rate must be a number .* got nan"),
    ],
)
def test_options_are_checked(data, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        config(data, tmp_path, **{"steps": 1, **options})


def test_flags_and_fields_are_the_same():
    parser = argparse.ArgumentParser()
    TrainingConfig.add_arguments(parser)
    flags = "--train a.tsv --output out --steps 7 --learning-rate 0.1 --no-tie-encoder-decoder --schedule cosine"
    args = parser.parse_args([*flags.split(), "--decay-steps", "9000", "--resume", "--max-minutes", "1.5"])
    expected = TrainingConfig(
        train="a.tsv", output="out", steps=7, learning_rate=0.1, tie_encoder_decoder=False, schedule="cosine",
        decay_steps=9000, resume=True, max_minutes=1.5,
    )  # fmt: skip
    assert TrainingConfig.from_args(args) == expected
    assert "updates between two evaluations (default: 1000)" in " ".join(parser.format_help().split())


# ------------------------------------------------------------------------------------------------ optimisation


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_torchs(smoothing, dtype):
    torch.manual_seed(0)
    logits = (torch.randn(40, 23) * 4 + 200).to(dtype).requires_grad_()  # exp(200) is not a float
    targets = torch.randint(0, 23, (40,))
    loss, plain = cross_entropy(logits.clone(), targets, smoothing)
    (gradient,) = torch.autograd.grad(loss * 0.25, logits)
    precise = logits.detach().double().requires_grad_()
    definition = torch.nn.functional.cross_entropy(precise, targets, label_smoothing=smoothing, reduction="sum")
    (expected,) = torch.autograd.grad(definition * 0.25, precise)
    assert loss.item() == pytest.approx(definition.item(), rel=1e-6)
    assert plain.item() == pytest.approx(torch.nn.functional.cross_entropy(precise, targets, reduction="sum").item())
    assert gradient.dtype == dtype
    assert (gradient - expected).abs().max() < {torch.float32: 1e-6, torch.float16: 2e-4, torch.bfloat16: 2e-3}[dtype]


@pytest.mark.parametrize(
    ("schedule", "decay", "rates"),
    [
        ("inverse-sqrt", None, {1: 0.01, 50: 0.5, 100: 1.0, 400: 0.5, 10_000: 0.1}),
        ("linear", 300, {1: 0.01, 50: 0.5, 100: 1.0, 200: 0.5, 250: 0.25, 300: 0.0}),
        ("cosine", 300, {1: 0.01, 50: 0.5, 100: 1.0, 150: 0.5 + 0.5**1.5, 200: 0.5, 300: 0.0}),
    ],
)
def test_learning_rate(schedule, decay, rates):
    options = TrainingConfig(
        "a", "b", steps=1, schedule=schedule, decay_steps=decay, warmup_steps=100, learning_rate=1.0
    )
    assert {step: learning_rate(step, options) for step in rates} == pytest.approx(rates, abs=1e-12)


def test_weight_decay_spares_vectors(short, data):
    model = EncoderDecoderModel.from_pretrained(short / "best")
    decayed, spared = make_optimizer(model, config(data, short, steps=1, weight_decay=0.3)).param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.3, 0.0)
    assert {p.ndim for p in decayed["params"]} == {2} and {p.ndim for p in spared["params"]} == {1}
    assert len(decayed["params"]) + len(spared["params"]) == len(list(model.parameters()))


def test_average_forgets_the_random_start():
    mean, model = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    start = mean.weight.detach().clone()
    update_average(mean, model, 0.9, 1)
    assert torch.allclose(mean.weight, start * 2 / 11 + model.weight * 9 / 11)
    update_average(mean, model, 0.9, 10**6)
    assert torch.allclose(mean.weight, (start * 2 / 11 + model.weight * 9 / 11) * 0.9 + model.weight * 0.1)


def test_clipping_bounds_the_gradient(data, tmp_path):
    trainer = Trainer(config(data, tmp_path / "run", steps=1, clip=1e-3))
    trainer.train()
    norms = [g.norm() for g in gradients(trainer, trainer.corpus.plan(256, "x"), range(1)).values()]
    assert torch.stack(norms).norm().item() == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision(short, data, tmp_path, precision):
    trainer = Trainer(config(data, tmp_path / "run", steps=1, precision=precision))
    trainer.train()
    with torch.autocast("cpu", trainer.precision):
        batch = trainer.corpus.batch(trainer.corpus.plan(256)[0], trainer.device)
        assert trainer.model.target_logits(*batch)[0].dtype == getattr(torch, precision)
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    (mixed,), (precise,) = history(tmp_path / "run"), history(short)
    assert mixed["loss"] == pytest.approx(precise["loss"], rel=1e-3) and mixed["loss"] != precise["loss"]
    assert mixed["dev_loss"] == pytest.approx(precise["dev_loss"], rel=1e-3)


def test_divergence_is_an_error(data, tmp_path, monkeypatch):
    update = Trainer._update

    def poisoned(self, plan, share):
        update(self, plan, share)
        self.loss_sum[0] = math.nan

    monkeypatch.setattr(Trainer, "_update", poisoned)
    with pytest.raises(BertgenError, match="loss is nan at update 4"):
        Trainer(config(data, tmp_path / "run", steps=8)).train()
    assert not (tmp_path / "run" / "best").exists()


# ------------------------------------------------------------------------------------------- evaluation, report


def test_bleu_takes_any_number_of_references():
    texts = ["the old house is cold today", "we drink water in the morning"]
    assert bleu(texts, [["something else entirely", texts[0]], [texts[1]]]).value == pytest.approx(100)
    assert bleu(texts, [["something else entirely"], [texts[1]]]).value < 90


def test_progress_lines(data, tmp_path, capsys):
    Trainer(config(data, tmp_path / "run", steps=2, quiet=False, log_seconds=0.0)).train()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "preparing the vocabulary"
    assert lines[1].startswith("500 training pairs (skipped: 0 above 16 pieces), 30 development pairs (skipped: 0), ")
    assert lines[2].split(",")[0] == "0:00:00 50% update 1" and lines[3].endswith("0:00:00 left")
    assert lines[4].startswith("evaluation at update 2: loss ") and lines[4].endswith(", the best so far")


def test_curve_without_development_data(tmp_path):
    row = {"step": 10, "loss": 2.0, "dev_loss": None, "bleu": None}
    write_curve(tmp_path / "loss.png", [row, {**row, "step": 20, "loss": 1.0}], averaged=False)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
