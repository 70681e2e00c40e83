"""Several processes, and the signals that end a run."""

import os
import signal
import socket
import time

import pytest

from bertgen.trainer import Trainer
from bertgen.trainer.distributed import Interrupt
from tests.support.training import config, history, start


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


def test_a_second_signal_has_its_usual_effect():
    # A process that a shell started in the background ignores the signal otherwise.
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    with Interrupt() as interrupt, pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.number == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    signal.signal(signal.SIGINT, former)
