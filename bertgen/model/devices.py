"""The device of a model, from the arguments of a caller."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import BackendError, ConfigError, UnsupportedError, quoted


def resolve_device(device: torch.device | str | int | None) -> torch.device:
    """The device of a name or CUDA index; None and negative indices are the CPU.

    Raises:
        BackendError: this machine does not have it.
    """
    if device is None:
        return torch.device("cpu")
    if isinstance(device, str) and device.lstrip("-").isdigit():
        device = int(device)
    if isinstance(device, int) and not isinstance(device, bool):
        if device < 0:  # the convention of pipelines: -1 is the CPU
            return torch.device("cpu")
    try:
        name = f"cuda:{device}" if isinstance(device, int) else device
        resolved = torch.device(name)
    except (RuntimeError, TypeError, ValueError) as error:
        raise BackendError(f"device {quoted(device)} is not a device; this machine has {_devices()}") from error
    if resolved.type == "meta":
        raise BackendError("device 'meta' holds no values: a model cannot run there")
    if resolved.type == "cuda":
        count = torch.cuda.device_count()
        if not 0 <= (resolved.index or 0) < count:  # torch wraps a large index to a negative one
            raise BackendError(f"device {str(name)!r} does not exist: this machine has {count} CUDA devices")
    elif resolved.type != "cpu":
        try:
            torch.empty(0, dtype=torch.uint8, device=resolved)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = f"device {str(resolved)!r} cannot be used ({str(error).splitlines()[0]})"
            raise BackendError(f"{reason}; this machine has {_devices()}") from error
    return resolved


def device_of_map(device: Any, device_map: Any) -> Any:
    """The device that transformers' `device_map` names, or `device` where `device_map` is None.

    Raises:
        ConfigError: both are passed.
        UnsupportedError: the map spreads a model over several devices, or puts it on disk.
    """
    if device_map is None:
        return device
    if device is not None:
        raise ConfigError(f"device={device!r} and device_map={device_map!r} are the same option: pass one of them")
    if isinstance(device_map, dict):
        devices = set(map(str, device_map.values()))
        if len(devices) != 1 or devices == {"disk"}:
            raise UnsupportedError(f"device_map={device_map!r}: a model is on one device as a whole, and not on disk")
        device_map = next(iter(device_map.values()))
    if device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    return device_map


def _devices() -> str:
    gpus = [f"cuda:{index} ({torch.cuda.get_device_name(index)})" for index in range(torch.cuda.device_count())]
    return ", ".join(["cpu", *gpus])
