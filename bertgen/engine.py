"""Engine: ids in, ids out, for any number of requests at once.

Requests wait in the order they came in. One is let in when the cache has room for the most it can come to need; then
its source is encoded, packed with others, and its rows join those that are being decoded. In each step every running
row gets one token. A row that has ended leaves at once, and what waits takes its place.

Requests with equal options share one search, whatever their lengths; requests of different options are decoded in one
batch by searches of their own.

An engine may be used from several threads. Whoever waits for results drives it: each call of `step` takes the lock and
brings all requests one token further, whosever they are. Nobody waits for a step to submit or to cancel.
"""

from __future__ import annotations

import functools
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from . import processors, search, stopping
from .cache import Cache
from .config import EngineConfig, GenerationConfig
from .errors import BackendError, CapacityError
from .inputs import next_positions
from .layers import AttentionContext
from .memory import is_out_of_memory
from .model import EncoderDecoderModel
from .packing import Packing, padded
from .pages import Admission
from .prepacked import Prepacked


@dataclass(frozen=True, eq=False)
class Request:
    """What to generate from, and how.

    Attributes:
        ids: of the source, at least one.
        options: settled.
        seed, number: what the draws depend on, besides the step: a request that has both again draws the same.
        scored: add up the log-probabilities of greedy and sampled outputs too.
        tokenizer: for `stop_strings`.
        logits_processor, stopping_criteria, prefix_allowed_tokens_fn: as of `model.generate`; they see this request
            only, and its `number` where they are told of a source.
        on_tokens: is called with the newest token of each of its rows, after every step, unless there are beams.
    """

    ids: Sequence[int]
    options: GenerationConfig
    seed: int = 0
    number: int = 0
    scored: bool = False
    tokenizer: Any = None
    logits_processor: Sequence[processors.Processor] | None = None
    stopping_criteria: Sequence[stopping.Criterion] | None = None
    prefix_allowed_tokens_fn: processors.AllowedTokens | None = None
    on_tokens: Callable[[list[int]], Any] | None = None

    @property
    def rows(self) -> int:
        """Sequences it decodes."""
        return max(self.options.num_beams, self.options.num_return_sequences)

    @functools.cached_property
    def shared_options(self) -> dict[str, Any]:
        """What must be equal for a search in common: how long an output may be is each source's own."""
        values = self.options.to_dict()
        if self.options.forced_eos_token_id is None:  # a processor would know the length
            del values["max_length"]
            values.pop("max_new_tokens", None)
        return values

    @property
    def alone(self) -> bool:
        """Whether something of it looks at one request only, so that it needs a search of its own."""
        options = self.options
        calls = self.logits_processor or self.stopping_criteria or self.prefix_allowed_tokens_fn
        source = options.encoder_repetition_penalty != 1.0 or options.encoder_no_repeat_ngram_size > 0
        return bool(calls or source or options.max_time is not None)


@dataclass(eq=False)
class Ticket:
    """A request in the engine.

    Attributes:
        outputs: tokens of each output behind the start token, best first; None until it is done.
        scores: log-probability / length ** length_penalty of each; None where it was not asked for.
        error: why it failed.
        cancelled: it is to be forgotten.
        on_done: is called with the ticket when it is done or has failed; not when it was cancelled.
    """

    request: Request
    serial: int
    on_done: Callable[[Ticket], Any]
    outputs: list[list[int]] | None = None
    scores: list[float | None] | None = None
    error: Exception | None = None
    cancelled: bool = False
    told: int = 0  # steps that on_tokens knows of
    parts: dict[int, tuple[list[int], float | None]] = field(default_factory=dict)  # rows that have ended

    @property
    def done(self) -> bool:
        """Whether there is an answer."""
        return self.outputs is not None or self.error is not None


@dataclass
class EngineStatistics:
    """What an engine has done, in seconds and counts; what it holds now.

    Attributes:
        encode, decode, select, admit: seconds in the encoder, in the decoder with the choice of tokens, in taking note
            of what has ended, and in letting requests in.
        steps: of all running rows. row_steps: tokens that were computed.
        requests, tokens: done, and their output tokens.
        encoded: source tokens that were encoded. shared: requests that used the source of another one.
        restarts: times that memory did not suffice and what was running began again.
        running, waiting: rows that are decoded now, requests that wait.
        pages, pages_used: of the cache.
        cache_bytes, prepacked_bytes: memory of keys and values, and of packed weights.
    """

    encode: float = 0.0
    decode: float = 0.0
    select: float = 0.0
    admit: float = 0.0
    steps: int = 0
    row_steps: int = 0
    requests: int = 0
    tokens: int = 0
    encoded: int = 0
    shared: int = 0
    restarts: int = 0
    running: int = 0
    waiting: int = 0
    pages: int = 0
    pages_used: int = 0
    cache_bytes: int = 0
    prepacked_bytes: int = 0

    @property
    def tokens_per_second(self) -> float:
        """Output tokens of what is done, per second of work."""
        return self.tokens / max(self.encode + self.decode + self.select + self.admit, 1e-9)


class _Lane:
    """Requests that share a search."""

    def __init__(self, ticket: Ticket, device: torch.device, vocabulary: int):
        request, options = ticket.request, ticket.request.options
        start = torch.tensor([[options.decoder_start_token_id]], device=device)
        allowed = _blamed(ticket, request.prefix_allowed_tokens_fn)
        number = request.number
        rules = processors.build(
            options, vocabulary, start,
            source_ids=torch.tensor([request.ids], device=device) if request.alone else None,
            allowed=None if allowed is None else (lambda _, tokens: allowed(number, tokens)),
            custom=_all_blamed(ticket, request.logits_processor),
        )  # fmt: skip
        criteria = stopping.build(options, request.tokenizer, _all_blamed(ticket, request.stopping_criteria))
        kind = search.BeamSearch if options.num_beams > 1 else search.Sampling
        self.search = kind(options, rules, criteria, search.KeyedDraws(), request.scored)
        self.request, self.start = request, start
        self.keeps_rows = rules.by_row or criteria.by_row

    def takes(self, request: Request) -> bool:
        """Whether the request can share this search."""
        mine = self.request
        if mine.alone or request.alone or mine.scored != request.scored:
            return False
        same = mine.options is request.options or mine.shared_options == request.shared_options
        return same and (mine.options.stop_strings is None or mine.tokenizer is request.tokenizer)

    def join(self, tickets: Sequence[Ticket]) -> None:
        asked = [t.request for t in tickets]
        keys = [[request.seed, request.number, request.options.max_length] for request in asked]
        self.search.join(
            self.start.expand(len(tickets), 1), tickets, *torch.tensor(keys, device=self.start.device).unbind(1)
        )

    @property
    def rows(self) -> int:
        return len(self.search.owners) * self.search.width


class _Decoder:
    """The running rows as `search.step` drives them."""

    def __init__(self, model: EncoderDecoderModel, cache: Cache):
        self.decoder, self.cache = model.decoder, cache
        self.reorder, self.select = cache.reorder, cache.select
        self._context: AttentionContext | None = None

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """int64 [R, 1], the newest token of each row -> logits [R, vocab] of the next."""
        cache, context = self.cache, self._context
        if context is None or context.tokens.shape[0] != len(tokens):
            context = AttentionContext(Packing.full(len(tokens), 1, tokens.device), causal=True, cache=cache)
            self._context = context
        cache.begin(1)
        positions = next_positions(tokens.flatten(), cache.lengths, self.decoder.config)
        hidden = self.decoder.body.packed(tokens.flatten(), positions, context)
        cache.advance(1)
        return self.decoder.head(hidden)


class Engine:
    """Generates for requests.

    Args:
        model: in evaluation mode.
        config: limits.
    """

    def __init__(self, model: EncoderDecoderModel, config: EngineConfig | None = None):
        self.model = model
        self.config = (config or EngineConfig()).on(model.device.type)
        self.lock = threading.RLock()  # of whoever drives
        self._door = threading.Lock()  # of what comes in meanwhile
        self._incoming: list[Ticket] = []
        self.prepacked = Prepacked(self.config.prepack)
        self._waiting: deque[Ticket] = deque()
        self._running: dict[Ticket, Admission] = {}
        self._lanes: list[_Lane] = []
        self._keys: dict[tuple[int, ...], list[int]] = {}  # source in flight -> its key, requests that have it
        self._serial, self._key = itertools.count(), itertools.count()
        self._rows = self.config.max_rows  # at most so many run; less once memory did not suffice
        self._counts = EngineStatistics()
        self._cache: Cache | None = None

    def _new_cache(self) -> Cache:
        """The slots that the memory allows, for rows that each take at least one page."""
        assert self.config.max_rows is not None and self.config.cache_bytes is not None
        encoder, decoder = self.model.config.encoder, self.model.config.decoder
        dtype, layers = self.model.dtype, decoder.num_hidden_layers
        slot = 2 * layers * decoder.hidden_size * dtype.itemsize
        slots = min(max(self.config.cache_bytes // slot, 1), 2**30)
        rows = self.config.max_rows
        return Cache(
            layers, decoder.num_attention_heads, decoder.head_dim, dtype, self.model.device,
            rows=rows, positions=decoder.max_tokens, slots=min(slots, rows * (decoder.max_tokens + 16)),
            source_positions=encoder.max_tokens, source_slots=min(slots, rows * (encoder.max_tokens + 16)),
            full=self.model.device.type == "cuda",
        )  # fmt: skip

    @property
    def cache(self) -> Cache:
        """Keys and values; made when they are first asked for."""
        with self._door:
            if self._cache is None:
                self._cache = self._new_cache()
                self._decoder = _Decoder(self.model, self._cache)
            return self._cache

    def submit(self, requests: Iterable[Request], on_done: Callable[[Ticket], Any]) -> list[Ticket]:
        """Line up requests; all of them are there before the next step.

        Args:
            on_done: is called with each ticket that is done or has failed, by the thread that drives the engine.

        Raises:
            CapacityError: one that could never run; then none is lined up. ConfigError: options that do not suit the
                model, say ids outside its vocabulary.
        """
        tickets = [Ticket(request, next(self._serial), on_done) for request in requests]
        lane: _Lane | None = None
        for ticket in tickets:
            request = ticket.request
            if lane is None or not lane.takes(request):  # tells of options that the model cannot take
                lane = _Lane(ticket, self.model.device, self.model.config.decoder.vocab_size)
            if request.rows > self.config.max_rows:
                raise CapacityError(f"a request of {request.rows} rows; max_rows is {self.config.max_rows}")
            self.cache.pages.require(request.rows, request.options.max_length - 1, len(request.ids))
        with self._door:
            self._incoming += tickets
        return tickets

    def cancel(self, tickets: Iterable[Ticket]) -> None:
        """Forget requests, wherever they are, now or after the step that is being done; what is done stays so."""
        for ticket in tickets:
            ticket.cancelled = not ticket.done
        if self.lock.acquire(blocking=False):
            try:
                self._sort_out()
            finally:
                self.lock.release()

    def clear(self) -> None:
        """Give the memory back; what is not done fails."""
        with self.lock:
            self._restart()
            self.prepacked.clear()
            self._sort_out()
            dropped, self._waiting = self._waiting, deque()
            for ticket in dropped:
                self._finish(ticket, error=BackendError("the engine was cleared before this was done"))

    def _sort_out(self) -> None:
        """Line up what has come in, and forget what was cancelled."""
        with self._door:
            self._waiting.extend(self._incoming)
            self._incoming = []
        if any(ticket.cancelled for ticket in self._waiting):
            self._waiting = deque(ticket for ticket in self._waiting if not ticket.cancelled)
        gone = {ticket for ticket in self._running if ticket.cancelled}
        if gone:
            with torch.inference_mode():
                self._leave(gone)

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._incoming or self._waiting or self._running)

    @property
    def statistics(self) -> EngineStatistics:
        """What it has done so far, and what it holds."""
        with self.lock:
            pages = self.cache.pages.statistics()
            waiting = len(self._waiting) + len(self._incoming)
            return replace(
                self._counts, running=self.cache.rows, waiting=waiting, pages=pages.pages, pages_used=pages.pages_used,
                cache_bytes=self.cache.bytes, prepacked_bytes=self.prepacked.bytes,
            )  # fmt: skip

    def step(self) -> None:
        """One token for every running row, after letting in what waits.

        What goes wrong with one request is its ticket's error. When the memory does not suffice, what is running goes
        back to wait, and half as many rows run from then on until the engine is idle.
        """
        with self.lock:
            failed: _Failed | None = None
            try:
                with torch.inference_mode():
                    return self._step()
            except _Failed as error:
                failed = error
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    self._fail_all(error)
                    return None
            except Exception as error:
                self._fail_all(error)
                return None
            except BaseException:  # an interrupt may come between any two lines: begin again
                self._restart()
                raise
            # Here and not above: while an exception is handled its traceback keeps the tensors of the step alive.
            if failed is not None:
                self._restart()
                self._waiting.remove(failed.ticket)
                self._finish(failed.ticket, error=failed.error)
            else:
                self._back_off()

    def _step(self) -> None:
        start = time.perf_counter()
        self._sort_out()
        self._admit()
        if not self._lanes:
            return
        began = time.perf_counter()
        with self.prepacked:
            search.step(self._decoder, [lane.search for lane in self._lanes])
        self._counts.steps += 1
        self._counts.row_steps += self.cache.rows
        chosen = time.perf_counter()
        self._tell()
        self._collect()
        now = time.perf_counter()
        self._counts.admit += began - start
        self._counts.decode += chosen - began
        self._counts.select += now - chosen

    # -- in

    def _admit(self) -> None:
        """Let in what waits, first come first served, as far as rows and the cache go."""
        free = self._rows - self.cache.rows
        if self._waiting and not self._running:
            self.prepacked.renew(self.model)
        if not self._waiting or (self._running and free < self.config.refill * self._rows):
            return
        entering: list[tuple[Ticket, Admission]] = []
        encode: list[tuple[Ticket, Admission]] = []
        while self._waiting:
            ticket = self._waiting[0]
            request = ticket.request
            if request.rows > free and (self._running or request.rows > self.config.max_rows):
                break
            key = self._keys.setdefault(tuple(request.ids), [next(self._key), 0])
            admission = self.cache.admit(request.rows, request.options.max_length - 1, key[0], len(request.ids))
            if admission is None:
                if key[1] == 0:
                    del self._keys[tuple(request.ids)]
                break
            key[1] += 1
            self._waiting.popleft()
            self._running[ticket] = admission
            free -= request.rows
            entering.append((ticket, admission))
            if admission.new_source:
                encode.append((ticket, admission))
            else:
                self._counts.shared += 1
        if not entering:
            return
        start = time.perf_counter()
        self._encode(sorted(encode, key=lambda pair: len(pair[0].request.ids), reverse=True))
        spent = time.perf_counter() - start
        self._counts.encode += spent
        self._counts.admit -= spent
        self._join(entering)

    def _encode(self, entering: list[tuple[Ticket, Admission]]) -> None:
        """Write the keys and values of sources into the cache, as many together as may be."""
        first = 0
        while first < len(entering):
            last, tokens = first, 0
            while last < len(entering):
                tokens += len(entering[last][0].request.ids)
                if last > first and tokens > self.config.encode_tokens:
                    break
                last += 1
            some = entering[first:last]
            sources = [list(ticket.request.ids) for ticket, _ in some]
            _, states = self.model.encoded(*padded(sources, 0, self.model.device))
            self.cache.begin_sources([admission for _, admission in some])
            for index, layer in enumerate(self.model.decoder.body.encoder.layer):
                self.cache.set_cross(index, *layer.crossattention.source_pair(states))
            self._counts.encoded += sum(map(len, sources))
            first = last

    def _join(self, entering: list[tuple[Ticket, Admission]]) -> None:
        """The rows of requests begin to run: in the cache behind all others, then in the order of the searches."""
        by_lane: dict[_Lane, list[tuple[Ticket, Admission]]] = {}
        before = {lane: lane.rows for lane in self._lanes}
        for ticket, admission in entering:
            lane = next((lane for lane in self._lanes if lane.takes(ticket.request)), None)
            if lane is None:
                lane = _Lane(ticket, self.model.device, self.model.config.decoder.vocab_size)
                self._lanes.append(lane)
            by_lane.setdefault(lane, []).append((ticket, admission))
        behind = sum(before.values())
        start = 0
        order: list[int] = []
        for lane in self._lanes:
            order += range(start, start + before.get(lane, 0))
            start += before.get(lane, 0)
            new = by_lane.get(lane, [])
            if new:
                lane.join([ticket for ticket, _ in new])
                self.cache.join([admission for _, admission in new])
                count = sum(len(admission.rows) for _, admission in new)
                order += range(behind, behind + count)
                behind += count
        if order != [*range(len(order))]:
            self.cache.select(torch.tensor(order))

    # -- out

    def _tell(self) -> None:
        """Give the newest tokens to those who want them."""
        for lane in self._lanes:
            if lane.search.width > 1 or not any(_ticket(owner).request.on_tokens for owner in lane.search.owners):
                continue
            newest: dict[Ticket, list[int]] = {}
            for owner, token in zip(lane.search.owners, lane.search.tokens[:, -1].tolist()):
                newest.setdefault(_ticket(owner), []).append(token)
            step = int(lane.search.lengths.max())
            for ticket, tokens in newest.items():
                if ticket.request.on_tokens is not None and step > ticket.told:  # not twice after a restart
                    ticket.told = step
                    try:
                        ticket.request.on_tokens(tokens)
                    except Exception as error:
                        raise _Failed(ticket, error) from error

    def _collect(self) -> None:
        """Take out what has ended."""
        kept, finished, start, changed = [], [], 0, False
        for lane in self._lanes:
            searching, rows = lane.search, lane.rows
            ended = searching.ended()
            if lane.keeps_rows and len(ended) < len(searching.owners):
                ended = ended[:0]
            if not len(ended):
                kept.append(torch.arange(start, start + rows))
                start += rows
                continue
            changed = True
            for place, (outputs, scores) in zip(ended.tolist(), searching.take(ended)):
                owner = searching.owners[place]
                ticket = _ticket(owner)
                if isinstance(owner, tuple):  # one of several rows
                    ticket.parts[owner[1]] = outputs[0], scores[0]
                    if len(ticket.parts) == ticket.request.options.num_return_sequences:
                        found = [ticket.parts[i] for i in sorted(ticket.parts)]
                        finished.append((ticket, [tokens for tokens, _ in found], [score for _, score in found]))
                else:
                    finished.append((ticket, outputs, scores))
            stays = torch.ones(len(searching.owners), dtype=torch.bool)
            stays[ended] = False
            kept.append(searching.keep(stays.nonzero().squeeze(1)) + start)
            start += rows
        if changed:
            self.cache.select(torch.cat(kept))
            self._lanes = [lane for lane in self._lanes if lane.search.owners]
        for ticket, outputs, scores in finished:
            self._forget(ticket)
            self._finish(ticket, outputs, scores)
        if not self.busy:
            self._rows = self.config.max_rows

    def _finish(
        self,
        ticket: Ticket,
        outputs: list[list[int]] | None = None,
        scores: list[float | None] | None = None,
        error: Exception | None = None,
    ) -> None:
        """A ticket has its answer."""
        options = ticket.request.options
        if outputs is not None and options.num_beams == 1 and ticket.request.scored:
            scores = [
                None if total is None else total / max(len(tokens), 1) ** options.length_penalty
                for tokens, total in zip(outputs, scores or [])
            ]
        ticket.outputs, ticket.scores, ticket.error, ticket.parts = outputs, scores, error, {}
        self._counts.requests += 1
        self._counts.tokens += sum(map(len, outputs or []))
        ticket.on_done(ticket)

    def _forget(self, ticket: Ticket) -> None:
        """A ticket runs no more; its cache is released already."""
        del self._running[ticket]
        key = self._keys[tuple(ticket.request.ids)]
        key[1] -= 1
        if not key[1]:
            del self._keys[tuple(ticket.request.ids)]

    def _leave(self, gone: set[Ticket]) -> None:
        """Running requests leave without an answer."""
        kept, start = [], 0
        for lane in self._lanes:
            owners, rows = lane.search.owners, lane.rows
            stays = torch.tensor([_ticket(owner) not in gone for owner in owners], dtype=torch.bool)
            kept.append(lane.search.keep(stays.nonzero().squeeze(1)) + start)
            start += rows
        self.cache.select(torch.cat(kept))
        self._lanes = [lane for lane in self._lanes if lane.search.owners]
        for ticket in gone & self._running.keys():
            self._forget(ticket)

    # -- when something goes wrong

    def _restart(self) -> None:
        """What is running goes back to wait, and begins anew: by its keys it draws what it drew."""
        for ticket in sorted(self._running, key=lambda ticket: ticket.serial, reverse=True):
            ticket.parts = {}
            self._waiting.appendleft(ticket)
        self._running.clear()
        self._keys.clear()
        self._lanes = []
        self._cache = None

    def _back_off(self) -> None:
        running = [*self._running]
        self._counts.restarts += 1
        self._rows = max(1, min(self._rows, sum(ticket.request.rows for ticket in running)) // 2)
        self._restart()
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(running) == 1:
            ticket = running[0]
            self._waiting.remove(ticket)
            options = ticket.request.options
            problem = (
                f"out of memory on {self.model.device} with request {ticket.request.number} alone: "
                f"{len(ticket.request.ids)} tokens, num_beams {options.num_beams}, max_length {options.max_length}"
            )
            self._rows = self.config.max_rows  # the others are not to blame
            self._finish(ticket, error=BackendError(problem))

    def _fail_all(self, error: Exception) -> None:
        """Something that no request is to blame for: all that were running fail by it."""
        running = sorted(self._running, key=lambda ticket: ticket.serial)
        self._restart()
        self._waiting = deque(ticket for ticket in self._waiting if ticket not in set(running))
        for ticket in running:
            self._finish(ticket, error=error)


class _Failed(Exception):
    """What a request brought along has failed."""

    def __init__(self, ticket: Ticket, error: Exception):
        super().__init__(str(error))
        self.ticket, self.error = ticket, error


def _blamed(ticket: Ticket, function: Any) -> Any:
    """A function that a request brought along; what it raises is that request's error."""
    if function is None:
        return None

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except Exception as error:
            raise _Failed(ticket, error) from error

    return call


def _all_blamed(ticket: Ticket, functions: Any) -> Any:
    if not isinstance(functions, (list, tuple)) or not all(map(callable, functions)):
        return functions  # whoever takes them says what is wrong
    return [_blamed(ticket, function) for function in functions]


def _ticket(owner: Any) -> Ticket:
    """The ticket of a row: its owner, or (ticket, which row)."""
    return owner[0] if isinstance(owner, tuple) else owner
