"""A decoder whose logits are read from a random table, and a search over it."""

from __future__ import annotations

import torch

from bertgen import GenerationConfig
from bertgen.decoding import new_search, resolve_generation_config, run_search

VOCABULARY, START, END = 12, 2, 1


class Table:
    """Logits that depend on the source and the last two tokens of a row."""

    def __init__(self, seed: int, sources: int, width: int):
        generator = torch.Generator().manual_seed(seed)
        self.table = 2 * torch.randn(sources, VOCABULARY, VOCABULARY, VOCABULARY, generator=generator)
        self.sources = torch.arange(sources).repeat_interleave(width)
        self.history = torch.empty(sources * width, 0, dtype=torch.long)
        self.steps = 0

    def of(self, source: int, history: list[int]) -> torch.Tensor:
        return self.table[source, ([0, *history])[-2], history[-1]]

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        self.steps += 1
        self.history = torch.cat((self.history, tokens), 1)
        return torch.stack([self.of(int(s), row.tolist()) for s, row in zip(self.sources, self.history)])

    def reorder(self, rows: torch.Tensor) -> None:
        assert torch.equal(self.sources, self.sources[rows]), "a beam goes on from one of its own source"
        self.history = self.history[rows]

    def select(self, rows: torch.Tensor) -> None:
        self.history, self.sources = self.history[rows], self.sources[rows]


def searched(seed: int, sources: int, prefix: list[int] | None = None, **options):
    base = GenerationConfig(bos_token_id=START, eos_token_id=END, pad_token_id=0, return_dict_in_generate=True)
    resolved = resolve_generation_config(GenerationConfig(**options).over(base), len(prefix or [START]))
    table = Table(seed, sources, max(resolved.num_beams, resolved.num_return_sequences))
    start = torch.tensor([prefix or [START]] * sources)
    return run_search(table, new_search(start, resolved)), table


def rows(output, sources: int) -> list[list[list[int]]]:
    """The outputs of each source, cut after their end tokens."""
    outputs = [row[: row.index(END) + 1] if END in row else row for row in output.sequences.tolist()]
    count = len(outputs) // sources
    return [outputs[i * count : (i + 1) * count] for i in range(sources)]
