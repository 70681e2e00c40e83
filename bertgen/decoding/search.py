"""What all searches have in common: units with an owner each join, go on and leave."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from ..config import GenerationConfig
from ..outputs import GenerateOutput
from .history import widened
from .logits_processors import Processors
from .rng import Draws
from .stopping_criteria import Criteria


class Search:
    """Base of the searches. What joins and leaves as one is a unit: `groups` groups of `beams` rows of the decoder.

    Args:
        options: settled.
        scored: find out the scores of outputs that are not those of beams, too.

    Attributes:
        owners: of each unit.
        tokens: int64 [rows, T], what the decoder is fed next.
        parents: int64 [rows], the row whose history each row continues; None where each continues its own.
        keeps_rows: whether rows stay when they are done: because the random numbers of others, what is returned or what
            a caller's function sees would change.
    """

    STATE: ClassVar[tuple[str, ...]]  # what is known of each group, on the device of the tokens
    groups = beams = 1
    histories: dict[str, int]  # those of STATE that have a place for each position -> what lies behind the last
    tokens: torch.Tensor
    lengths: torch.Tensor  # of the history of each group, on the host
    parents: torch.Tensor | None = None

    def __init__(
        self, options: GenerationConfig, processors: Processors, criteria: Criteria, draws: Draws, scored: bool = False
    ):
        self.options, self.processors, self.criteria, self.draws = options, processors, criteria, draws
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
        """Sources join, behind those that are here.

        Args:
            prefix: int64 [n, P]; P is 1 where others are here.
            owners: of each source.
            seeds, numbers: int64 [n] on the device of the prefix, for draws by key.
            limits: int64 [n] there, the longest output of each with its prefix; by default `max_length`.
        """
        nothing = prefix.new_zeros(len(prefix))
        self.prefix, self.end = prefix.shape[1], prefix.new_tensor(self.options.end_tokens)
        fresh = self._begun(
            prefix,
            nothing if seeds is None else seeds,
            nothing if numbers is None else numbers,
            nothing + self.options.max_length if limits is None else limits,
        )
        if self.owners:
            fresh = {name: self._behind(name, new) for name, new in fresh.items()}
        vars(self).update(fresh)
        self.owners += self._units(owners)

    def _begun(
        self, prefix: torch.Tensor, seeds: torch.Tensor, numbers: torch.Tensor, limits: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The tokens, the lengths and the STATE of sources that begin."""
        raise NotImplementedError

    def _units(self, sources: Sequence[Any]) -> Sequence[Any]:
        """The owners of the units of these sources."""
        return sources

    def _behind(self, name: str, new: torch.Tensor) -> torch.Tensor:
        """Some state, and more of it."""
        old = getattr(self, name)
        if name in self.histories:
            width = max(old.shape[-1], new.shape[-1])
            old, new = (widened(x, width, self.histories[name]) for x in (old, new))
        return torch.cat((old, new))

    def _widen(self, width: int) -> None:
        """Make room for histories of so many positions."""
        for name, fill in self.histories.items():
            setattr(self, name, widened(getattr(self, name), width, fill))

    def advance(self, logits: torch.Tensor) -> bool:
        """Choose the next token of each row from logits [rows, V]; False when the search is done."""
        raise NotImplementedError

    def ended(self) -> torch.Tensor:
        """int64, the places of the units that have ended, on the host."""
        raise NotImplementedError

    def take(self, places: torch.Tensor) -> list[tuple[list[list[int]], list[float | None]]]:
        """Of the units at these places: their outputs, best first and without the prefix, and the scores of these."""
        raise NotImplementedError

    def leave(self, places: torch.Tensor) -> torch.Tensor:
        """The units at these places (int64, on the host) leave; returns the rows that stay, for the decoder."""
        if not len(places):
            return torch.arange(len(self.owners) * self.width, device="cpu")
        stays = torch.ones(len(self.owners), dtype=torch.bool, device="cpu")
        stays[places] = False
        groups = self._groups(stays.nonzero().squeeze(1))
        rows = (groups[:, None] * self.beams + torch.arange(self.beams, device="cpu")).flatten()
        there = groups.to(self.tokens.device)
        for name in self.STATE:
            setattr(self, name, getattr(self, name)[there])
        self.lengths = self.lengths[groups]
        self.tokens, self.parents = self.tokens[rows.to(self.tokens.device)], None
        self.owners = [owner for owner, stay in zip(self.owners, stays.tolist()) if stay]
        return rows

    def _groups(self, places: torch.Tensor) -> torch.Tensor:
        """The places of the groups of the units at these places."""
        return (places[:, None] * self.groups + torch.arange(self.groups, device="cpu")).flatten()

    def thinned(self) -> torch.Tensor | None:
        """Rows to go on with once half of the units have ended; None to go on with all."""
        if self.keeps_rows:
            return None
        ended = self.ended()
        if 2 * len(ended) < len(self.owners):
            return None
        self._set_aside(ended)
        return self.leave(ended)

    def _set_aside(self, places: torch.Tensor) -> None:
        """Note for `output` what was found for the units at these places."""
        raise NotImplementedError

    def output(self) -> GenerateOutput:
        """What was found for all that have joined, in the order of their owners, padded behind the ends."""
        raise NotImplementedError
