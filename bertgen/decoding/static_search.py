"""StaticSearch: a search over a fixed number of units, whose state is in tensors that never move.

A step is a program over these tensors: it reads nothing on the host, copies nothing to the device, and no shape depends
on a value. So it can be recorded once and repeated, and another implementation can run it on the same tensors. What a
step computes is `Sampling.choose` and `BeamSearch.choose`, as in the searches without a fixed size.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

from .. import ops
from ..config import GenerationConfig
from .beam_search import DEAD_SCORE, BeamSearch
from .fused_processors import FusedProcessors, fuse
from .rng import KeyedRng, SampleLimits
from .sampling import Sampling, sample_limits
from .search import Search
from .tensor_processors import TensorProcessor

RETURNED = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
HISTORIES = ("sequences", "running_sequences", "finished_sequences")
# What a unit begins with, where that does not depend on the source.
FIRST_STATE: dict[str, float] = dict(
    lengths=1, log_probs=0.0, running_scores=DEAD_SCORE, finished_scores=-torch.inf, finished_lengths=1,
    is_finished=False, can_improve=True, over=False,
)  # fmt: skip


def why_not_static(search: Search) -> str | None:
    """Why a search cannot run as static steps, as one clause; None where it can."""
    options = search.options
    if not isinstance(search, (Sampling, BeamSearch)):
        return f"{type(search).__name__} has no static form"
    if search.owners:
        return "the search has sources already"
    if search.groups > 1:
        return f"there are {search.groups} groups of beams"
    if isinstance(search, BeamSearch) and options.do_sample:
        return "beams are sampled"
    if options.do_sample and not isinstance(search.rng, KeyedRng):
        return "tokens are sampled with a generator of torch"
    if search.criteria:
        return "a stopping criterion runs in Python (stopping_criteria, stop_strings, max_time)"
    returned = [name for name in RETURNED if getattr(options, name)]
    if returned:
        return f"{returned[0]} returns tensors of every step"
    if isinstance(search, BeamSearch) and search.records_beams:
        return "return_dict_in_generate records the beam of every token"
    processors = search.processors
    if processors.has_custom:
        return "a logits_processor of the caller runs in Python"
    if processors.by_row:
        return (
            "a processor depends on the source of a row (prefix_allowed_tokens_fn, encoder_repetition_penalty, "
            "encoder_no_repeat_ngram_size, repetition_penalty with a padded prompt)"
        )
    if processors.tensor_processors is None:
        return "a warper is not one of temperature, top_k, top_p and min_p, or renormalize_logits comes after it"
    return None


class StaticSearch:
    """A search over a fixed number of units.

    Args:
        search: without units, and `why_not_static(search)` is None. Its tensors become the buffers.
        units: capacity.
        positions: width of histories; no output is longer, with its prefix of one token.
        over: bool [units]; tokens: int64 [units * width, 1]; parents: int64 [units * width]: buffers that the caller
            made, or views of its buffers.

    Attributes:
        width: rows of a unit.
        owners: the owner of each unit; None where the unit is free.
        over: True in units that are free or have ended. Nothing of such a unit changes in a step.
        lengths: int64 [units], tokens of the history, with its prefix.
        tokens: the next input of the decoder.
        parents: the row, counted from the first row of this search, whose history each row continues.
        state: every buffer, by name.
        processors: in their order; each has a `code`.
    """

    def __init__(
        self,
        search: Search,
        units: int,
        positions: int,
        over: torch.Tensor,
        tokens: torch.Tensor,
        parents: torch.Tensor,
    ):
        assert isinstance(search, (Sampling, BeamSearch))
        self.search, self.units, self.positions, self.width = search, units, positions, search.width
        self.owners: list[Any | None] = [None] * units
        self.over, self.tokens, self.parents = over, tokens, parents
        self.device = over.device
        # Copies: what `prepare` makes for this width stays where it is.
        self.processors = [copy.copy(processor) for processor in search.processors.tensor_processors or ()]
        for processor in self.processors:
            processor.prepare(positions)
        self._fused: Sequence[TensorProcessor | FusedProcessors] = self.processors
        if self.device.type == "cuda":
            self._fused = fuse(self.processors, units * self.width, self.device)
        search.begin(1, self.device)
        self.lengths = self._full((units,), 1, torch.int64)
        self.first_rows = torch.arange(units * self.width, device=self.device)
        over.fill_(True)
        tokens.zero_()
        parents.copy_(self.first_rows)
        limits = self._full((units,), positions, torch.int64)
        own = self._sampling_state(search) if isinstance(search, Sampling) else self._beam_state(search)
        self.state = dict(**own, limits=limits, lengths=self.lengths, over=over, tokens=tokens, parents=parents)
        vars(search).update(own, limits=limits, tokens=tokens)

    def _full(self, shape: tuple[int, ...], value: float, dtype: torch.dtype) -> torch.Tensor:
        return torch.full(shape, value, dtype=dtype, device=self.device)

    def _sampling_state(self, search: Sampling) -> dict[str, torch.Tensor]:
        units = self.units
        search.final_lengths = self.lengths
        return dict(
            sequences=self._full((units, self.positions), search.fill, torch.int64),
            seeds=self._full((units,), 0, torch.int64),
            numbers=self._full((units,), 0, torch.int64),
            log_probs=self._full((units,), 0.0, torch.float64),
            **search.new_limits(units, self.device),
        )

    def _beam_state(self, search: BeamSearch) -> dict[str, torch.Tensor]:
        units, beams = self.units, search.beams
        search.running_beam_indices = self._full((units, beams, 0), -1, torch.int32)
        search.finished_beam_indices = search.running_beam_indices
        return dict(
            running_sequences=self._full((units, beams, self.positions), search.fill, torch.int64),
            finished_sequences=self._full((units, beams, self.positions), search.fill, torch.int64),
            running_scores=self._full((units, beams), DEAD_SCORE, torch.float32),
            finished_scores=self._full((units, beams), -torch.inf, torch.float32),
            finished_lengths=self._full((units, beams), 1, torch.int64),
            is_finished=self._full((units, beams), False, torch.bool),
            can_improve=self._full((units,), False, torch.bool),
        )

    def free_units(self, count: int) -> list[int] | None:
        """The first `count` units that are free; None where there are fewer."""
        free = [unit for unit, owner in enumerate(self.owners) if owner is None][:count]
        return free if len(free) == count else None

    def join(
        self,
        units: Sequence[int],
        prefix: torch.Tensor,
        owners: Sequence[Any],
        seeds: torch.Tensor | None = None,
        numbers: torch.Tensor | None = None,
        limits: torch.Tensor | None = None,
        options: Sequence[GenerationConfig] | None = None,
    ) -> None:
        """Begin outputs in free units.

        Args:
            units: where.
            prefix: int64 [n, 1], the first token of each.
            owners, seeds, numbers, limits: as of `Search.join`, one for each unit; tensors on the host are copied to
                the device together. With several return sequences the number of sequence i is that of the source
                + (i << 40).
            options: of each unit, where they differ from those of the search in temperature, top_k, top_p and min_p.
        """
        columns = [
            torch.tensor(units, dtype=torch.int64, device="cpu"),
            prefix[:, 0],
            *(torch.zeros_like(prefix[:, 0]) if x is None else x for x in (seeds, numbers)),
            torch.full_like(prefix[:, 0], self.search.options.max_length) if limits is None else limits,
            *self._sample_limits([self.search.options] * len(units) if options is None else options),
        ]
        if any(x.device != self.device for x in columns[1:]):
            columns = [x.cpu() for x in columns]
            columns = [*self._copied(torch.stack(columns))]
        index, first, seeds, numbers, limits, *of_samples = (x.to(self.device) for x in columns)
        for name, buffer in self.state.items():
            if name in FIRST_STATE:
                buffer.index_fill_(0, index, FIRST_STATE[name])
        state = self.state
        state["limits"].index_copy_(0, index, limits)
        state["tokens"].view(-1, self.width).index_copy_(0, index, first[:, None].expand(-1, self.width))
        if "sequences" in state:
            state["seeds"].index_copy_(0, index, seeds)
            state["numbers"].index_copy_(0, index, numbers)
            for name, values in zip(SampleLimits._fields, of_samples):
                state[name].index_copy_(0, index, values.view(torch.float64).to(state[name].dtype))
            histories = self._full((len(units), self.positions), self.search.fill, torch.int64)
            histories[:, 0] = first
            state["sequences"].index_copy_(0, index, histories)
        else:
            histories = self._full((len(units), self.width, self.positions), self.search.fill, torch.int64)
            histories[..., 0] = first[:, None]
            state["running_sequences"].index_copy_(0, index, histories)
            state["finished_sequences"].index_copy_(0, index, histories)
            state["running_scores"][:, 0].index_fill_(0, index, 0.0)
        for unit, owner in zip(units, owners, strict=True):
            self.owners[unit] = owner

    def _sample_limits(self, options: Sequence[GenerationConfig]) -> list[torch.Tensor]:
        """The bits, int64 on the host, of SampleLimits of these options in float64; none where nothing is sampled."""
        if not isinstance(self.search, Sampling) or not self.search.has_limits:
            return []
        rows = [[*sample_limits(vars(one)).values()] for one in options]
        return [*torch.tensor(rows, dtype=torch.float64, device="cpu").view(torch.int64).unbind(1)]

    def leave(self, units: Sequence[int]) -> None:
        """Make units free, whether they have ended or not."""
        if not units:
            return
        self.over.index_fill_(0, self._index(units), True)
        for unit in units:
            self.owners[unit] = None

    def take(self, other: StaticSearch, theirs: Sequence[int], mine: Sequence[int]) -> None:
        """Copy units of another StaticSearch of the same options into free units of this one; `other` keeps them."""
        if not theirs:
            return
        source, target = other._index(theirs), self._index(mine)
        for name, buffer in self.state.items():
            if name == "parents":
                continue
            values = other.state[name].unflatten(0, (other.units, -1)).index_select(0, source)
            buffer = buffer.unflatten(0, (self.units, -1))
            if name in HISTORIES:
                width = min(values.shape[-1], buffer.shape[-1])
                buffer, values = buffer[..., :width], values[..., :width]
            buffer.index_copy_(0, target, values)
        for their, unit in zip(theirs, mine, strict=True):
            self.owners[unit] = other.owners[their]

    def _index(self, units: Sequence[int]) -> torch.Tensor:
        return self._copied(torch.tensor(units, dtype=torch.int64, device="cpu"))

    def _copied(self, values: torch.Tensor) -> torch.Tensor:
        """Values of the host on the device, by a copy that does not wait for what is queued."""
        if self.device.type == "cuda":
            return values.pin_memory().to(self.device, non_blocking=True)
        return values.to(self.device)

    def step(self, logits: torch.Tensor) -> None:
        """Choose the next token of each row from logits [rows, V]."""
        if isinstance(self.search, Sampling):
            self._sample(self.search, logits)
        else:
            self._extend(self.search, logits)

    def _processed(self, histories: torch.Tensor, lengths: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        for processor in self._fused:
            scores = processor.rows(histories, lengths, scores)
        return scores

    def _sample(self, search: Sampling, logits: torch.Tensor) -> None:
        over, lengths, sequences = self.over, self.lengths, search.sequences
        scores = self._processed(sequences, lengths, logits.float())
        tokens, log_probs, ends = search.choose(logits, scores, lengths)
        if log_probs is not None:
            search.log_probs.add_(log_probs.masked_fill(over, 0.0))
        # A unit that has ended may have a full history: it writes a token that it has.
        position = torch.where(over, 0, lengths)[:, None]
        sequences.scatter_(1, position, torch.where(over[:, None], sequences[:, :1], tokens[:, None]))
        self.tokens.copy_(torch.where(over[:, None], self.tokens, tokens[:, None]))
        lengths.add_(~over)
        over.logical_or_(ends)

    def _extend(self, search: BeamSearch, logits: torch.Tensor) -> None:
        over, lengths, beams = self.over, self.lengths, self.width
        scores = logits.float()
        if not search.uses_top_log_probs:
            scores = ops.log_softmax(scores)
            if self._fused:
                histories = search.running_sequences.flatten(0, 1)
                scores = self._processed(histories, lengths[:, None].expand(-1, beams).flatten(), scores)
        # A unit that has ended may have a full history: what its last position gets is not kept.
        new, _ = search.choose(scores, lengths.clamp(max=self.positions - 1))
        row_over = over[:, None].expand(-1, beams).flatten()
        self.parents.copy_(torch.where(row_over, self.first_rows, new.pop("parents")))
        self.tokens.copy_(torch.where(row_over[:, None], self.tokens, new.pop("tokens")))
        done = new.pop("is_done")
        for name, value in new.items():
            buffer = self.state[name]
            buffer.copy_(torch.where(over.view(-1, *[1] * (value.dim() - 1)), buffer, value))
        lengths.add_(~over)
        over.logical_or_(done)

    def results(self, units: torch.Tensor) -> list[tuple[list[list[int]], list[float | None]]]:
        """As `Search.results`."""
        return self.search.results(units)
