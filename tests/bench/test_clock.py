"""The clock: sleeps and copies of known length."""

from __future__ import annotations

import time

import pytest
import torch

from bertgen.bench import clock, machine
from tests.support.benchmarks import CPU, make_row


def test_a_sleep_of_known_length():
    (taken,) = clock.race({"sleep": [lambda: time.sleep(0.02)]}, CPU, seconds=0.1).values()
    row = make_row(seconds=taken)
    assert len(taken) >= 5 and 0.02 <= min(taken) and row.median < 0.03


def test_a_short_call_is_repeated_within_a_sample():
    calls = []
    (taken,) = clock.race({"short": [lambda: calls.append(0), lambda: calls.append(1)]}, CPU, 0.0, least=3).values()
    assert len(taken) == 3 and max(taken) < clock.SHORTEST / 10 and len(calls) > 100
    assert set(calls) == {0, 1}, "both copies of the arguments are gone through"


def test_a_copy_of_known_bytes():
    source, target = torch.ones(2, 2**23).unbind()
    alone = min(machine.seconds(lambda: target.copy_(source)) for _ in range(10))
    (taken,) = clock.race({"copy": [lambda: target.copy_(source)]}, CPU, 0.05, least=15).values()
    row = make_row(seconds=[min(taken)], amount=2.0 * source.nbytes, unit="B", limit=2.0 * source.nbytes / alone)
    assert 0.5 < row.fraction < 2 and row.rate == pytest.approx(2 * source.nbytes / min(taken))


def test_contenders_take_turns():
    order = []
    clock.race({name: [lambda name=name: (order.append(name), time.sleep(1e-3))] for name in "ab"}, CPU, 0.0, least=3)
    last = "".join(order[-12:])
    assert last == "aabbaabbaabb", "each call that counts follows one that does not"


def test_what_cannot_be_captured_is_told(monkeypatch, capsys):
    """Its launches from Python would count beside replays of others."""

    class Device:
        def __init__(self, device):
            assert device.type == "cuda"

        def run_beside(self, call):
            call()

        def capture(self, call):
            raise RuntimeError("it reads a value\nand more")

        def synchronize(self):
            calls.append("synchronize")

    calls = []
    monkeypatch.setattr(clock, "CudaDevice", Device)
    monkeypatch.setattr(clock, "on_device", lambda call: call() or 1.0)
    taken = clock.race({"eager": [lambda: calls.append("call")]}, torch.device("cuda"), 0.0, least=2)
    assert taken == {"eager": [1.0, 1.0]} and calls == ["call"] * 3 + ["synchronize"] + ["call"] * 2
    message = "eager: no CUDA graph of it, so its launches from Python count: RuntimeError: it reads a value\n"
    assert message in capsys.readouterr().err
    monkeypatch.setattr(Device, "capture", lambda self, call: lambda: calls.append("replay"))
    clock.race({"ours": [lambda: None]}, torch.device("cuda"), 0.0, least=2)
    assert calls[-2:] == ["replay"] * 2 and capsys.readouterr().err == ""
