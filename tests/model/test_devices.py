"""Devices by name, index and `device_map`."""

from __future__ import annotations

import pytest
import torch

from bertgen import BackendError, ConfigError, UnsupportedError
from bertgen.model.devices import device_of_map, resolve_device


@pytest.mark.parametrize("device", [None, "cpu", -1, "-1", torch.device("cpu")])
def test_names_of_the_cpu(device):
    assert resolve_device(device) == torch.device("cpu")


@pytest.mark.parametrize("device", ["meta", "nowhere", True, 2.5, "cuda:1000"])
def test_a_device_that_is_not_there_is_named(device):
    with pytest.raises(BackendError, match="device"):
        resolve_device(device)


def test_a_map_names_one_device():
    assert device_of_map("cpu", None) == "cpu"
    assert device_of_map(None, {"": "cpu"}) == device_of_map(None, {"encoder": "cpu", "decoder": "cpu"}) == "cpu"
    assert device_of_map(None, "auto") == ("cuda:0" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ConfigError, match="pass one of them"):
        device_of_map("cpu", "auto")
    for several in ({"encoder": "cpu", "decoder": "cuda:0"}, {"": "disk"}):
        with pytest.raises(UnsupportedError, match="a model is on one device as a whole"):
            device_of_map(None, several)
