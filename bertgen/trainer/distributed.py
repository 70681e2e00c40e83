"""The processes of a run: one or those that torchrun started, and the signals that end them."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn


class ProcessGroup:
    """This process's place among those of the run, as torchrun's environment variables say; 0 of 1 without it."""

    def __init__(self, device: torch.device) -> None:
        self.rank = int(os.environ.get("RANK", 0))
        self.world = int(os.environ.get("WORLD_SIZE", 1))
        self.device = device

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """Connect the processes, and disconnect them at the end."""
        if self.world == 1:
            yield
            return
        # The first process evaluates while the others wait for its gradients, hence the patience.
        dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo", timeout=timedelta(hours=2))
        try:
            yield
        finally:
            dist.destroy_process_group()

    def wait(self) -> None:
        """Return when all processes have called this."""
        if self.world > 1:
            dist.barrier()

    def agree(self, *numbers: int) -> list[int]:
        """Return the largest value of each number over all processes."""
        if self.world == 1:
            return list(numbers)
        largest = torch.tensor(numbers, dtype=torch.int64, device=self.device)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return largest.tolist()

    def sum_gradients(self, model: nn.Module, loss: torch.Tensor) -> torch.Tensor:
        """Replace the gradients of all processes by their sum, and return the sum of their losses (scalars)."""
        if self.world == 1:
            return loss
        parameters = [p for p in model.parameters() if p.requires_grad]
        for parameter in parameters:
            if parameter.grad is None:  # this process had no batch in a short last update
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([p.grad.flatten() for p in parameters] + [loss.reshape(1)])
        dist.all_reduce(flat)
        *gradients, total = flat.split([p.numel() for p in parameters] + [1])
        for parameter, gradient in zip(parameters, gradients):
            parameter.grad.copy_(gradient.view_as(parameter))
        return total.squeeze(0)


class Interrupt:
    """Within its context SIGTERM and SIGINT are noted instead of deadly; a second one has its usual effect.

    `number` is the signal's, 0 before one came.
    """

    def __init__(self) -> None:
        self.number = 0
        self.former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread do it
            for number in (signal.SIGTERM, signal.SIGINT):
                self.former[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        while self.former:
            signal.signal(*self.former.popitem())

    def _note(self, number: int, _: object) -> None:
        self.number = number
        self.__exit__()
