"""Engine: ids in, ids out, for any number of requests at once.

Requests wait in the order they came in. One is let in when the cache has room for the most it can come to need; then
its source is encoded, packed with others, and its rows join those that are being decoded. In each step every running
row gets one token. A row that has ended leaves at once, and what waits takes its place.

Requests with equal options share one search, whatever their lengths; requests of different options are decoded in one
batch by searches of their own.

An engine may be used from several threads. Whoever waits for results drives it: each call of `step` takes the lock and
brings all requests one token further, whosever they are. Nobody waits for a step to submit or to cancel.

What arrives during a step, be it from a function that a request brought along or from the garbage collector, which may
close a stream at any place, waits for the end of the step. Answers are given when it is over and the lock is free. What
one request raises is its own error: it leaves, and the others stay where they are.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from .. import process_events
from ..cache.block_allocator import Admission
from ..cache.cache import Cache
from ..config import EngineConfig
from ..errors import BackendError, CapacityError, InputError, UnsupportedError
from ..memory import is_out_of_memory
from ..model import EncoderDecoderModel
from ..packing import padded
from .callback_errors import Failed, let_go
from .decoder import Decoder
from .request import Request, Ticket
from .running_batch import Lanes
from .search_group import Lane
from .statistics import EngineStatistics

logger = logging.getLogger(__name__)

_PATIENCE = 1.0  # seconds that the end of the interpreter waits for a function of a request
_inherited: list[Any] = []  # of engines that were copied into the child of a fork, and cannot be taken down there


class Engine:
    """Generates for requests.

    Args:
        model: in evaluation mode.
        config: limits.
    """

    def __init__(self, model: EncoderDecoderModel, config: EngineConfig | None = None):
        self.model = model
        self.config = (config or EngineConfig()).on(model.device.type)
        self._begin()
        process_events.register(self)

    def _begin(self) -> None:
        self.lock = threading.RLock()  # of whoever drives
        self._driver: int | None = None  # the thread that is in the middle of something
        self._deferred: list[Callable[[], None]] = []  # calls that arrived during a step, to be made at its end
        self._exiting_thread: int | None = None  # the thread that ends the interpreter; no other drives then
        self._door = threading.RLock()  # of who makes the cache
        self._incoming: deque[list[Ticket]] = deque()
        self._waiting: deque[Ticket] = deque()
        self._running: dict[Ticket, Admission] = {}
        self._answered: deque[Ticket] = deque()  # whose `on_done` is still to be called
        self._lanes = Lanes(self.model)
        self._keys: dict[tuple[int, ...], tuple[int, int]] = {}  # source in flight -> its key, requests that have it
        self._serial = itertools.count()
        self._rows = self.config.max_rows  # at most so many run; less once memory did not suffice
        self._counts = EngineStatistics()
        self._decoder: Decoder | None = None  # and the cache, once there is one
        self._interrupt: BaseException | None = None

    def after_fork(self) -> None:
        """Begin anew in the child of a fork: what runs, runs in the parent."""
        _inherited.append((self._decoder, self._lanes, self._running))
        self._begin()

    def before_exit(self) -> None:
        """Let no other thread go on, and answer what is not done by an error: the interpreter ends."""
        self._exiting_thread = threading.get_ident()
        while not self.lock.acquire(timeout=0.05):  # and it is kept
            now = time.monotonic()
            if any(ticket.calling and now - ticket.calling > _PATIENCE for ticket in [*self._running]):
                return  # a function that never returns holds up nobody, and it is not inside of torch
        self.clear()

    def _new_cache(self) -> Cache:
        """The slots that the memory allows, for rows that each take at least one page."""
        assert self.config.max_rows is not None and self.config.cache_bytes is not None
        encoder, decoder = self.model.config.encoder, self.model.config.decoder
        dtype, layers = self.model.dtype, len(self.model.decoder.body.encoder.layer)
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
            if self._decoder is None:
                made = Decoder(self.model, self._new_cache())
                self._decoder = self._decoder or made  # there is one if the garbage collector has called meanwhile
            return self._decoder.cache

    def submit(self, requests: Iterable[Request], on_done: Callable[[Ticket], Any]) -> list[Ticket]:
        """Line up requests; all of them are there before the next step.

        Args:
            on_done: is called with each ticket that is done or has failed, by the thread that drives the engine; again
                where an interrupt came meanwhile.

        Raises:
            CapacityError: one that could never run; then none is lined up. ConfigError: options that do not suit the
                model, say ids outside its vocabulary. InputError: the same of the source; a seed or number of more
                than 64 bits. UnsupportedError: a hook on the model, its decoder or the stack in that, which would not
                be called. BackendError: the model is on a GPU, and this is the child of a fork.
        """
        self.model.refuse_hooks()
        self.model.decoder.body.encoder.check_sources()
        if self.model.device.type == "cuda" and process_events.is_child():
            raise BackendError("a GPU cannot be used in the child of a fork: start processes by spawn")
        tickets = [Ticket(request, next(self._serial), on_done) for request in requests]
        lane: Lane | None = None
        for ticket in tickets:
            request = ticket.request
            self._check(ticket)
            if lane is None or not lane.takes(request):  # tells of options that the model cannot take
                lane = Lane(ticket, self.model)
            if request.rows > self.config.max_rows:
                raise CapacityError(f"a request of {request.rows} rows; max_rows is {self.config.max_rows}")
            self.cache.allocator.check_capacity(request.rows, request.options.max_length - 1, len(request.ids))
        self._incoming.append(tickets)
        return tickets

    def _check(self, ticket: Ticket) -> None:
        """Raise InputError for what would fail in the middle of a step, where others are."""
        request, vocabulary = ticket.request, self.model.config.encoder.vocab_size
        if not all(type(token) is int for token in ticket.source):
            raise InputError("the ids of a source must be integers")
        if not ticket.source or min(ticket.source) < 0 or max(ticket.source) >= vocabulary:
            wrong = [token for token in ticket.source if not 0 <= token < vocabulary][:1]
            raise InputError(f"a source must hold ids from 0 to {vocabulary - 1}, and at least one, got {wrong}")
        for name in ("seed", "number"):
            value = getattr(request, name)
            if type(value) is not int or not -(2**63) <= value < 2**63:
                raise InputError(f"{name} must be an integer of 64 bits, got {value!r}")

    def cancel(self, tickets: Iterable[Ticket]) -> None:
        """Forget requests, wherever they are, now or after the step that is being done; what is done stays so."""
        for ticket in tickets:
            ticket.cancelled = not ticket.done
        self._run_or_defer(self._sort_out, blocking=False)

    def clear(self) -> None:
        """Give the memory back, now or after the step that is being done; what is not done fails."""
        self._run_or_defer(self._clear)
        if not self.stepping:
            self._tell()

    def _run_or_defer(self, call: Callable[[], None], blocking: bool = True) -> None:
        """Make a call now, or at the end of the step that is under way."""
        if self.stepping or not self.lock.acquire(blocking):
            return self._deferred.append(call)
        try:
            self._driver = threading.get_ident()
            call()
            self._run_deferred()
        finally:
            self._driver = None
            self.lock.release()

    def _run_deferred(self) -> None:
        """Make the calls that arrived during the step."""
        while self._deferred:
            self._deferred.pop(0)()

    @property
    def stepping(self) -> bool:
        """Whether this thread is in the middle of a step, in a function of a request or in the garbage collector."""
        return self._driver == threading.get_ident() and self.lock._is_owned()  # type: ignore[attr-defined]

    @property
    def exiting(self) -> bool:
        """Whether this thread ends the interpreter, so that no other drives."""
        return self._exiting_thread == threading.get_ident()

    def _clear(self) -> None:
        self._restart()
        self._sort_out()
        self._fail([*self._waiting], BackendError("the engine was cleared before this was done"))

    def _sort_out(self) -> None:
        """Line up what has come in, and forget what was cancelled."""
        while self._incoming:
            self._waiting.extend(self._incoming.popleft())
        if any(ticket.cancelled for ticket in self._waiting):
            self._waiting = deque(ticket for ticket in self._waiting if not ticket.cancelled)
        gone = {ticket for ticket in self._running if ticket.cancelled}
        if gone:
            with torch.inference_mode():
                self._lanes.drop(gone, self.cache)
            for ticket in gone:
                self._forget(ticket)

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._incoming or self._waiting or self._running or self._answered)

    @property
    def statistics(self) -> EngineStatistics:
        """What it has done so far, and what it holds."""
        with self.lock:
            pages = self.cache.allocator.statistics()
            waiting = len(self._waiting) + sum(map(len, [*self._incoming]))
            return replace(
                self._counts, running=self.cache.rows, waiting=waiting, pages=pages.pages, pages_used=pages.pages_used,
                cache_bytes=self.cache.bytes,
            )  # fmt: skip

    def step(self) -> None:
        """One token for every running row, after letting in what waits.

        What goes wrong with one request is its ticket's error. When the memory does not suffice, what is running goes
        back to wait, and half as many rows run from then on until the engine is idle.

        Raises:
            UnsupportedError: this thread is in the middle of a step already.
        """
        if self.stepping:
            raise UnsupportedError(
                "a function that is called in the middle of a step cannot wait for a Generator's next one: it may "
                "submit, and look at the answer when it has returned"
            )
        if self._exiting_thread is not None and self._exiting_thread != threading.get_ident():
            threading.Event().wait()  # the interpreter ends, and with it this thread
        process_events.run(self._turn)

    def _turn(self) -> None:
        interrupt: BaseException | None = None
        try:
            with self.lock:
                try:
                    self._driver = threading.get_ident()
                    self._guarded_step()
                    self._run_deferred()
                    interrupt, self._interrupt = self._interrupt, None
                finally:
                    self._driver = None
        finally:
            self._tell()
        if interrupt is not None:
            raise interrupt

    def _guarded_step(self) -> None:
        try:
            # The requests may be of other threads than this one, whose autocast is no matter of theirs.
            with torch.inference_mode(), torch.autocast(self.model.device.type, enabled=False):
                return self._step()
        except RecursionError:  # this thread was deep down already: no request is to blame
            self._restart()
            raise
        except Exception as error:
            if not (isinstance(error, RuntimeError) and is_out_of_memory(error)):  # no request is to blame
                running = self._restart()
                return self._fail(running, error)
        except BaseException:  # an interrupt may come between any two lines: begin again
            self._restart()
            raise
        # Here and not above: while an exception is handled its traceback keeps the tensors of the step alive.
        self._back_off()

    def _step(self) -> None:
        start = time.perf_counter()
        self._sort_out()
        self._admit()
        if not self._lanes:
            return
        began = time.perf_counter()
        self._lanes.step(self._decoder)
        self._counts.steps += 1
        self._counts.row_steps += self.cache.rows
        chosen = time.perf_counter()
        self._lanes.tell()
        self._expel(self._lanes.expel(self.cache))
        self._collect()
        now = time.perf_counter()
        self._counts.admit += began - start
        self._counts.decode += chosen - began
        self._counts.select += now - chosen

    # -- in

    def _admit(self) -> None:
        """Let in what waits, first come first served, as far as rows and the cache go."""
        free = self._rows - self.cache.rows
        if not self._waiting or (self._running and free < self.config.refill * self._rows):
            return
        entering: dict[Ticket, Admission] = {}
        while self._waiting:
            ticket = self._waiting[0]
            request, source = ticket.request, ticket.source
            if request.rows > free and self._running:
                break
            key, users = self._keys.get(source, (ticket.serial, 0))
            admission = self.cache.admit(request.rows, request.options.max_length - 1, key, len(source))
            if admission is None:
                break
            self._keys[source] = key, users + 1
            self._waiting.popleft()
            self._running[ticket] = entering[ticket] = admission
            free -= request.rows
        if not entering:
            return
        start = time.perf_counter()
        try:
            self._encode(entering)
        except Exception as error:  # nothing of those that run is touched
            failed = Failed.of_request(error)
            for admission in entering.values():
                self.cache.allocator.release(admission.request)
            return self._expel(dict.fromkeys(entering, failed))
        spent = time.perf_counter() - start
        self._counts.encode += spent
        self._counts.admit -= spent
        self._expel(self._lanes.join(entering, self.cache))

    def _encode(self, entering: dict[Ticket, Admission]) -> None:
        """Write the keys and values of new sources into the cache, the longest first, as many together as may be."""
        new = [(ticket.source, admission) for ticket, admission in entering.items() if admission.new_source]
        new.sort(key=lambda pair: len(pair[0]), reverse=True)
        self._counts.shared += len(entering) - len(new)
        while new:
            tokens = itertools.accumulate(len(ids) for ids, _ in new)
            count = max(1, sum(total <= self.config.encode_tokens for total in tokens))
            some, new = new[:count], new[count:]
            sources = [list(ids) for ids, _ in some]
            _, states = self.model.encoded(*padded(sources, 0, self.model.device))
            self.cache.begin_sources([admission for _, admission in some])
            self.model.decoder.body.encoder.write_sources(self.cache, states)
            self._counts.encoded += sum(map(len, sources))

    # -- out

    def _expel(self, failures: Mapping[Ticket, Failed]) -> None:
        """Answer what has failed; its rows are gone already."""
        for ticket, failed in failures.items():
            self._forget(ticket)
            ticket.called = failed.called
            self._interrupt = self._interrupt or failed.interrupt
            let_go(failed.error)
            self._finish(ticket, failed.error)

    def _collect(self) -> None:
        """Answer what has ended."""
        for ticket, outputs, scores in self._lanes.collect(self.cache):
            self._forget(ticket)
            ticket.outputs, ticket.scores = outputs, scores
            self._counts.tokens += sum(map(len, outputs))
            self._finish(ticket)
        self._expel(self._lanes.expel(self.cache))
        if not (self._incoming or self._waiting or self._running):
            self._rows = self.config.max_rows

    def _finish(self, ticket: Ticket, error: Exception | None = None) -> None:
        """A ticket has its answer, which is given to who waits for it when the step is over."""
        if not ticket.cancelled:
            self._counts.requests += 1
            ticket.error = error
            self._answered.append(ticket)

    def _tell(self) -> None:
        """Give the answers that there are to those who wait for them; the lock is free."""
        while self._answered:
            try:
                ticket = self._answered.popleft()
            except IndexError:  # another thread was faster
                return
            try:
                ticket.on_done(ticket)
            except Exception:
                logger.exception("what was to be told of an answer raised")
            except BaseException:
                if threading.current_thread() is not threading.main_thread():  # nobody is there to be told
                    logger.exception("what was to be told of an answer raised")
                    continue
                ticket.on_done(ticket)  # an interrupt may have come before it knew
                raise

    def _forget(self, ticket: Ticket) -> None:
        """A ticket runs no more; its cache is released already."""
        del self._running[ticket]
        key, users = self._keys.pop(ticket.source)
        if users > 1:
            self._keys[ticket.source] = key, users - 1

    # -- when something goes wrong

    def _restart(self) -> list[Ticket]:
        """What is running, which goes back to wait and begins anew: by its keys it draws what it drew."""
        tickets = sorted(self._running, key=lambda ticket: ticket.serial)
        self._waiting.extendleft(reversed(tickets))
        self._running.clear()
        self._keys.clear()
        self._lanes.clear()
        self._decoder = None
        return tickets

    def _back_off(self) -> None:
        """Memory did not suffice: half as many rows from now on."""
        self._counts.restarts += 1
        running = self._restart()
        self._rows = max(1, min(self._rows, sum(ticket.request.rows for ticket in running)) // 2)
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
        if not running:
            problem = (
                f"out of memory on {self.model.device} for the cache itself: cache_bytes {self.config.cache_bytes} for "
                "outputs, and as much for sources"
            )
            self._fail([*self._waiting], BackendError(problem))
        elif len(running) == 1:
            request, options = running[0].request, running[0].request.options
            problem = (
                f"out of memory on {self.model.device} with request {request.number} alone: "
                f"{len(request.ids)} tokens, num_beams {options.num_beams}, max_length {options.max_length}"
            )
            self._rows = self.config.max_rows  # the others are not to blame
            self._fail(running, BackendError(problem))

    def _fail(self, tickets: Sequence[Ticket], error: Exception) -> None:
        """Waiting requests are answered by an error."""
        failed = set(tickets)
        self._waiting = deque(ticket for ticket in self._waiting if ticket not in failed)
        for ticket in tickets:
            self._finish(ticket, error)
