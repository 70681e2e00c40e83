"""Progress lines and the loss curve."""

import sys

from bertgen.optional_imports import install_command
from bertgen.trainer import Trainer
from bertgen.trainer.report import write_curve
from tests.support.training import config


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


def test_a_run_without_matplotlib_has_no_curve_and_says_so(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = Trainer(config(data, tmp_path / "run", steps=2, quiet=False)).train()
    first = capsys.readouterr().err.splitlines()[0]
    assert first.startswith("loss.png is not drawn: ") and first.endswith(f"; {install_command('matplotlib>=3.8')}")
    assert (result.output / "history.jsonl").exists() and not (result.output / "loss.png").exists()
