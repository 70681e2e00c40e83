"""Base of the searches: sources join, advance and leave."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..config import GenerationConfig
from ..outputs import GenerateOutput
from .logits_processors import LogitsProcessorList
from .rng import Rng
from .stopping_criteria import StoppingCriteriaList
from .token_history import pad_histories


class Search:
    """Base of the searches.

    A unit joins and leaves as a whole. It has one owner, and `groups` groups of `beams` rows of the decoder.

    Args:
        options: resolved (`resolve_generation_config`).
        scored: compute scores of outputs for greedy search and sampling too.

    Attributes:
        owners: the owner of each unit.
        tokens: int64 [rows, T], the next input of the decoder.
        parents: int64 [rows], the row whose history each row continues; None where each continues its own.
        keeps_rows: whether ended rows stay. They must stay where their absence would change the random numbers of other
            rows, the returned tensors, or the arguments of a caller's function.
    """

    STATE: tuple[str, ...]  # names of the tensors with one row per group, on the device of the tokens
    groups = beams = 1
    fill: int  # of positions of an output after its end
    histories: dict[str, int]  # names in STATE with one column per position -> value of unused positions
    tokens: torch.Tensor
    lengths: torch.Tensor  # of the history of each group, on the host
    parents: torch.Tensor | None = None

    def __init__(
        self,
        options: GenerationConfig,
        processors: LogitsProcessorList,
        criteria: StoppingCriteriaList,
        rng: Rng,
        scored: bool = False,
    ):
        self.options, self.processors, self.criteria, self.rng = options, processors, criteria, rng
        self.scored = scored
        self.owners: list[Any] = []
        self.scores: list[torch.Tensor] = []
        self.logits: list[torch.Tensor] = []
        returns_rows = options.return_dict_in_generate and (
            options.use_cache
            or options.output_scores
            or options.output_logits
            or options.output_attentions
            or options.output_hidden_states
        )
        self.keeps_rows = bool(options.do_sample or returns_rows or processors.by_row or criteria.by_row)

    @property
    def width(self) -> int:
        """Rows of a unit."""
        return self.groups * self.beams

    def join(
        self,
        prefix: torch.Tensor,
        owners: Sequence[Any],
        seeds: torch.Tensor | None = None,
        numbers: torch.Tensor | None = None,
        limits: torch.Tensor | None = None,
    ) -> None:
        """Append sources.

        Args:
            prefix: int64 [n, P]; P is 1 where the search already has sources.
            owners: of each source.
            seeds, numbers: int64 [n] on the device of the prefix, for a keyed RNG.
            limits: int64 [n] on that device, maximum length of each output with its prefix; by default `max_length`.
        """
        zeros = prefix.new_zeros(len(prefix))
        self.begin(prefix.shape[1], prefix.device)
        state = self._initial_state(
            prefix,
            zeros if seeds is None else seeds,
            zeros if numbers is None else numbers,
            zeros + self.options.max_length if limits is None else limits,
        )
        if self.owners:
            state = {name: self._appended(name, rows) for name, rows in state.items()}
        vars(self).update(state)
        self.owners += self._unit_owners(owners)

    def begin(self, prefix: int, device: torch.device) -> None:
        """Prepare for sources whose outputs begin with `prefix` tokens."""
        self.prefix = prefix
        self.end = torch.tensor(self.options.end_tokens, dtype=torch.int64, device=device)

    def _initial_state(
        self, prefix: torch.Tensor, seeds: torch.Tensor, numbers: torch.Tensor, limits: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The tokens, the lengths and the STATE of new sources."""
        raise NotImplementedError

    def _unit_owners(self, owners: Sequence[Any]) -> Sequence[Any]:
        """The owner of each unit, from the owner of each source."""
        return owners

    def _appended(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        """Append new rows to a state tensor."""
        old = getattr(self, name)
        if name in self.histories:
            width = max(old.shape[-1], rows.shape[-1])
            old, rows = (pad_histories(x, width, self.histories[name]) for x in (old, rows))
        return torch.cat((old, rows))

    def _grow_histories(self, width: int) -> None:
        """Make room for histories of `width` positions."""
        for name, fill in self.histories.items():
            setattr(self, name, pad_histories(getattr(self, name), width, fill))

    def advance(self, logits: torch.Tensor) -> bool:
        """Choose the next token of each row from logits [rows, V]; False when the search is done."""
        raise NotImplementedError

    def ends_by_token(self, tokens: torch.Tensor) -> torch.Tensor:
        """bool [..], which of tokens int64 [..] end an output."""
        return (tokens[..., None] == self.end).any(-1)  # torch.isin may read the host for many end tokens

    def ended(self) -> torch.Tensor:
        """int64, indices of the units that have ended, on the host."""
        raise NotImplementedError

    def results(self, units: torch.Tensor) -> list[tuple[list[list[int]], list[float | None]]]:
        """Outputs (without the prefix) and their scores for these units (int64, on the host), best first."""
        raise NotImplementedError

    def leave(self, units: torch.Tensor) -> torch.Tensor:
        """Remove these units (int64, on the host); returns the rows of the decoder that stay."""
        if not len(units):
            return torch.arange(len(self.owners) * self.width, device="cpu")
        stays = torch.ones(len(self.owners), dtype=torch.bool, device="cpu")
        stays[units] = False
        groups = self._groups_of(stays.nonzero().squeeze(1))
        rows = (groups[:, None] * self.beams + torch.arange(self.beams, device="cpu")).flatten()
        groups_on_device = groups.to(self.tokens.device)
        for name in self.STATE:
            setattr(self, name, getattr(self, name)[groups_on_device])
        self.lengths = self.lengths[groups]
        self.tokens, self.parents = self.tokens[rows.to(self.tokens.device)], None
        self.owners = [owner for owner, stay in zip(self.owners, stays.tolist()) if stay]
        return rows

    def _groups_of(self, units: torch.Tensor) -> torch.Tensor:
        """Indices of the groups of these units."""
        return (units[:, None] * self.groups + torch.arange(self.groups, device="cpu")).flatten()

    def drop_ended(self) -> torch.Tensor | None:
        """Remove ended units once they are at least half; returns the rows of the decoder that stay, None for all."""
        if self.keeps_rows:
            return None
        ended = self.ended()
        if 2 * len(ended) < len(self.owners):
            return None
        self._store_results(ended)
        return self.leave(ended)

    def _store_results(self, units: torch.Tensor) -> None:
        """Keep the results of these units for `output`."""
        raise NotImplementedError

    def output(self) -> GenerateOutput:
        """The results of all units in the order of their owners, padded after their ends."""
        raise NotImplementedError
