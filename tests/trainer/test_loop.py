"""A whole run: it learns, it resumes exactly, and what it writes is whole."""

import contextlib
import dataclasses
import json
import math
import os
import resource
import signal
import time

import numpy as np
import pytest
import torch

from bertgen import BertGenerationTokenizer, ConfigError, EncoderDecoderModel, OutputError
from bertgen.errors import BertgenError
from bertgen.generator import Generator
from bertgen.metrics import bleu
from bertgen.trainer import Trainer, loop, state
from bertgen.trainer import data as trainer_data
from tests.support.training import assert_same_state, config, gradients, history, sentences, start, step_of


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


def test_output_of_another_run_is_not_overwritten(short, data):
    with pytest.raises(ConfigError, match=r"holds state\.pt of another run"):
        Trainer(config(data, short, steps=2)).train()


@pytest.mark.parametrize("name", ["spiece.model", "state.pt", "best"])
def test_a_full_disk_is_named(data, tmp_path, monkeypatch, name):
    """The error names the file that could not be written and the system's reason, for each writer."""

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
