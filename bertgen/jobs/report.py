"""What a job has done: counts and messages while it runs, statistics at its end."""

from __future__ import annotations

import dataclasses
import platform
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import torch

from .. import __version__
from ..generator import Generator, Output
from ..generator.scorer import Likelihood

MESSAGES = 20  # of a report: enough to see why lines failed
_SAVED = ("windows", "lines", "failed", "truncated", "input_tokens", "tokens", "bytes", "seconds")


@dataclass
class JobReport:
    """What a job has done so far, in all its runs: a resumed job includes what was committed before.

    Attributes:
        lines: processed, failed ones included.
        failed: lines that could not be used and were recorded as such.
        truncated: lines whose end was not read.
        input_tokens: read by the model, special tokens included.
        tokens: generated, end tokens included, of the best output of each line.
        bytes: of the input that were processed.
        windows: that were processed to their last line.
        seconds: since the first line was read, without the time between runs.
        messages: file, line and reason of the first lines that failed or were truncated.
        first_line: number of the first line in the whole file, from 0; above 0 in a shard.
        total_lines, total_bytes: of the input or the shard; None where it is no file.
        committed: lines that the next run would keep; None where a job cannot be resumed.
        before: the report at the start of this run, where it resumes an earlier one.
    """

    lines: int = 0
    failed: int = 0
    truncated: int = 0
    input_tokens: int = 0
    tokens: int = 0
    bytes: int = 0
    windows: int = 0
    seconds: float = 0.0
    messages: list[str] = field(default_factory=list)
    first_line: int = 0
    total_lines: int | None = None
    total_bytes: int | None = None
    committed: int | None = None
    before: JobReport | None = None
    _start: float = field(default_factory=time.monotonic, repr=False)

    @property
    def this_run(self) -> JobReport:
        """The counts of this run alone."""
        if self.before is None:
            return self
        return dataclasses.replace(self, **{name: getattr(self, name) - getattr(self.before, name) for name in _SAVED})

    def count(self, line: str, size: int, result: Output | Likelihood, truncation_message: str) -> None:
        """Add a line.

        Args:
            line: its file and number, for messages.
            size: its bytes.
            result: of the line.
            truncation_message: for a line that was cut.
        """
        self.lines += 1
        self.bytes += size
        self.failed += result.error is not None
        self.truncated += result.truncated
        self.input_tokens += result.input_tokens if isinstance(result, Output) else 0
        self.tokens += len(result.token_ids)
        if (result.error is not None or result.truncated) and len(self.messages) < MESSAGES:
            self.messages.append(f"{line}: {result.error or truncation_message}")
        self.seconds = time.monotonic() - self._start + (self.before.seconds if self.before else 0.0)

    def saved(self) -> dict[str, Any]:
        """The counts that the next run continues, as a JSON object."""
        return {name: getattr(self, name) for name in (*_SAVED, "messages")}

    def restore(self, saved: dict[str, Any]) -> None:
        """Continue the counts that an earlier run saved; KeyError, TypeError or ValueError where they are damaged."""
        for name in _SAVED:
            value, kinds = saved[name], (int, float) if name == "seconds" else (int,)
            if isinstance(value, bool) or not isinstance(value, kinds) or not value >= 0:
                raise ValueError(f"{name} is {value!r}")
            setattr(self, name, value)
        if self.lines > self.total_lines or self.bytes > self.total_bytes:
            raise ValueError(f"there are {self.total_lines} lines, {self.lines} are done")
        self.committed = self.lines
        self.messages = [str(message) for message in saved["messages"]]
        self.before = dataclasses.replace(self, messages=list(self.messages))


def statistics(report: JobReport, generator: Generator) -> dict[str, Any]:
    """Counts, rates, memory, device, dtype and versions of a job, as a JSON object.

    `lines`, `failed`, `truncated`, `tokens_in`, `tokens_out`, `windows` and `seconds_total` are of all runs of the job;
    `seconds` and the rates are of this one. Memory is in bytes.
    """
    run, device = report.this_run, generator.model.device
    seconds = max(run.seconds, 1e-9)
    return {
        "lines": report.lines,
        "failed": report.failed,
        "truncated": report.truncated,
        "tokens_in": report.input_tokens,
        "tokens_out": report.tokens,
        "windows": report.windows,
        "seconds": run.seconds,
        "seconds_total": report.seconds,
        "lines_per_second": run.lines / seconds,
        "tokens_per_second": run.tokens / seconds,
        "first_line": report.first_line + 1,
        "resumed_at": None if report.before is None else report.first_line + report.before.lines + 1,
        "peak_memory": _peak_memory(),
        "peak_device_memory": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "dtype": str(generator.model.dtype).removeprefix("torch."),
        "versions": {"bertgen": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }


def _peak_memory() -> int | None:
    """The most memory this process has held, in bytes; None where the system does not tell."""
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
