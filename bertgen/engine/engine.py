"""Engine: ids in, ids out, for any number of requests at once.

The scheduler decides which requests enter, leave and wait. The engine executes: it encodes the sources of entering
requests, packed together, appends their rows to the running batch, decodes one token for every row, and returns the
requests that are complete. Requests with equal options share one search, whatever their lengths; all searches share
each call of the decoder. Requests that call no Python in a step are in a batch of their own, the static batch, where
several steps run as one program; both batches share one cache, and may run in the same step of the engine.

Several threads may use an engine. Any waiting thread calls `step()`, which takes the lock and decodes one token for all
requests, and several for those of the static batch. `submit` and `cancel` never wait for a step.

Calls that arrive during a step, from a request's callback or from the garbage collector (which may close a stream at
any point), are deferred to the end of the step. `on_done` is called after the step, without the lock. An exception
caused by one request becomes the error of that request: it leaves, and the others keep their rows.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch

from .. import decoding, process_events
from ..cache.block_allocator import Admission, BlockAllocator, Limits, check_capacity
from ..cache.cache import Cache
from ..config import EngineConfig
from ..errors import BackendError, CapacityError, InputError, UnsupportedError, quoted
from ..model import EncoderDecoderModel
from ..model.batch_decoder import BatchDecoder
from ..model.prefill import cache_layers, check_prefill
from ..ops.device_guard import device_guard
from ..ops.slow_paths import report_slow_paths
from ..out_of_memory import free_memory, is_out_of_memory
from ..packing import padded
from .callback_errors import RequestFailure, clear_frames
from .request import Request, SearchKey
from .running_batch import RunningBatch
from .scheduler import Capacity, Scheduler
from .search_group import SearchGroup
from .static_batch import StaticBatch
from .static_steps import StaticSteps, why_not_static_request
from .statistics import EngineStatistics
from .step_clock import StepClock

logger = logging.getLogger(__name__)

CACHE_SHARE = 0.4  # of a GPU's free memory, for the keys and values of outputs, and as much for those of sources
LEAST_SHARE = CACHE_SHARE / 64  # that is tried where the memory does not suffice
_EXIT_TIMEOUT = 1.0  # seconds that the end of the interpreter waits for a callback
_inherited: list[Any] = []  # state of engines copied into the child of a fork, where it cannot be destroyed


class _StaticFailureError(Exception):
    """Static steps raised an exception that concerns no single request."""

    def __init__(self, error: Exception):
        super().__init__()
        self.error = error


def _slot_bytes(model: EncoderDecoderModel) -> int:
    """Bytes of the keys and values of one token in all layers."""
    return 2 * cache_layers(model) * model.config.decoder.hidden_size * model.dtype.itemsize


def _static_call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of the static batch, which calls no code of a request.

    Raises:
        _StaticFailureError: by an exception that concerns neither the thread that steps nor its memory.
    """
    try:
        return function(*arguments)
    except Exception as error:
        if RequestFailure.of_step(error) is None:
            raise
        raise _StaticFailureError(error) from error


class Engine:
    """Generates for requests.

    Args:
        model: in evaluation mode.
        config: limits.

    Attributes:
        lock: held during a step.
        scheduler: the queue and the running set.
    """

    def __init__(self, model: EncoderDecoderModel, config: EngineConfig | None = None):
        self.model = model
        given = config or EngineConfig()
        tokens = model.config.decoder.max_tokens + model.config.encoder.max_tokens
        self.config = given.on(model.device.type, _slot_bytes(model) * tokens)
        self._largest_request = given.largest_request(model.device.type)
        self._reset()
        process_events.register(self)

    def _reset(self) -> None:
        assert self.config.max_rows is not None
        self._cache_share = CACHE_SHARE
        self._cache_limits: Limits | None = None  # once they were needed
        self.lock = threading.RLock()
        self._stepping_thread: int | None = None
        self._deferred: list[Callable[[], None]] = []  # calls that arrived during a step, to be made at its end
        self._exiting_thread: int | None = None  # the thread that ends the interpreter; no other may step then
        self._cache_lock = threading.RLock()
        self._decoder: BatchDecoder | None = None  # with the cache, once there is one
        self._static_steps = StaticSteps(self.model, self.config.max_rows)
        self._static: StaticBatch | None = None  # over the same cache
        self._static_failure: str | None = None  # why no more steps are static
        self._batch = RunningBatch(self.model)
        self.scheduler = Scheduler(self.config.max_rows, self.config.refill)
        self._done: deque[Request] = deque()  # requests whose `on_done` is still to be called
        self._counts = EngineStatistics()
        self._clock = StepClock(self.model.device, ("encode", "decode", "select", "admit"))
        self._raised: list[Exception] = []  # in this step, which became errors of requests
        self._interrupt: BaseException | None = None  # to raise at the end of the step

    def after_fork(self) -> None:
        """Reset in the child of a fork: requests in flight stay with the parent."""
        _inherited.append((self._decoder, self._batch, self._static, self._static_steps, self.scheduler))
        self._reset()

    def before_exit(self) -> None:
        """Stop all other threads from stepping, and fail what is not done: the interpreter ends."""
        self._exiting_thread = threading.get_ident()
        while not self.lock.acquire(timeout=0.05):  # and keep it
            now = time.monotonic()
            starts = [request.callback_started for request in [*self.scheduler.running]]
            if any(start and now - start > _EXIT_TIMEOUT for start in starts):
                return  # the callback may never return, and no thread is inside of torch
        self.clear()

    @property
    def cache_limits(self) -> Limits:
        """What the cache holds, for rows that each take at least one page; set when it is first needed."""
        if self._cache_limits is None:
            encoder, decoder = self.model.config.encoder, self.model.config.decoder
            slot_bytes = _slot_bytes(self.model)
            budget = self.config.cache_bytes or int(self._cache_share * free_memory(self.model.device))
            slots, rows, page = min(max(budget // slot_bytes, 1), 2**30), self._largest_request, BlockAllocator.PAGE
            self._cache_limits = Limits(
                rows=rows, positions=decoder.max_tokens, slots=min(slots, rows * (decoder.max_tokens + page)),
                page=page, source_positions=encoder.max_tokens,
                source_slots=min(slots, rows * (encoder.max_tokens + page)), source_page=page,
            )  # fmt: skip
        return self._cache_limits

    def _new_cache(self) -> Cache:
        limits, decoder = self.cache_limits, self.model.config.decoder
        return Cache(
            cache_layers(self.model), decoder.num_attention_heads, decoder.head_dim, self.model.dtype,
            self.model.device, rows=limits.rows, positions=limits.positions, slots=limits.slots,
            source_positions=limits.source_positions, source_slots=limits.source_slots,
            full=self.model.device.type == "cuda",
        )  # fmt: skip

    @property
    def cache(self) -> Cache:
        """Keys and values of the running batch; made at the first access, which is in a step."""
        with self._cache_lock:
            if self._decoder is None:
                decoder = BatchDecoder(self.model, self._new_cache())
                batch = self._static_steps.new_batch(decoder.cache)
                if self._decoder is None:  # the garbage collector may have called this meanwhile
                    self._decoder, self._static = decoder, batch
            return self._decoder.cache

    def submit(self, requests: Iterable[Request], on_done: Callable[[Request], Any]) -> list[Request]:
        """Queue requests, all of them before the next step; returns them as a list.

        Args:
            on_done: called with each request that is finished or has failed, by the thread that steps; a second time
                where an interrupt arrived during the call.

        Raises:
            CapacityError: a request that could never run; then none is queued. ConfigError: options that do not suit
                the model, such as ids outside its vocabulary. InputError: the same for the source; a seed or number of
                more than 64 bits; a request that was submitted before. UnsupportedError: a hook on the model, its
                decoder or the decoder's stack, which would not be called; a model in training mode. BackendError: the
                model is on a GPU, and this is the child of a fork; or the C++ extension is missing, and
                BERTGEN_REQUIRE_EXT=1.
        """
        with device_guard(self.model.device):
            requests = self.check(requests)
        self.scheduler.submit(requests, on_done)
        return requests

    def check(self, requests: Iterable[Request]) -> list[Request]:
        """The requests as a list; raises what `submit` does, but for a request that was submitted before."""
        self.model.refuse_hooks()
        if self.model.training:
            raise UnsupportedError("the model is in training mode, in which dropout is random: call model.eval()")
        check_prefill(self.model)
        if self.model.device.type == "cuda" and process_events.is_child():
            raise BackendError("a GPU cannot be used in the child of a fork: start processes by spawn")
        report_slow_paths(self.model.device)
        requests = list(requests)
        checked: tuple[SearchKey, decoding.Search] | None = None
        for request in requests:
            self._check(request)
            if checked is None or not checked[0].matches(request.search_key):
                checked = request.search_key, SearchGroup(request, self.model).search  # checks the options
            request.why_not_static = why_not_static_request(request, checked[1])
            if request.rows > self._largest_request:
                raise CapacityError(f"a request of {request.rows} rows; max_rows is {self._largest_request}")
            self.check_capacity(request)
        return requests

    def check_capacity(self, request: Request) -> None:
        """Raise CapacityError for a request that an empty cache could not hold."""
        check_capacity(self.cache_limits, request.rows, request.positions, len(request.ids))

    def _check(self, request: Request) -> None:
        """Raise InputError for values that would fail inside a step, together with other requests."""
        ids, vocabulary = request.ids, self.model.config.encoder.vocab_size
        if not all(type(token) is int for token in ids):
            raise InputError("the ids of a source must be integers")
        if not ids or min(ids) < 0 or max(ids) >= vocabulary:
            outside = [token for token in ids if not 0 <= token < vocabulary][:1]
            raise InputError(f"a source must hold ids from 0 to {vocabulary - 1}, and at least one, got {outside}")
        for name in ("seed", "number"):
            value = getattr(request, name)
            if type(value) is not int or not -(2**63) <= value < 2**63:
                raise InputError(f"{name} must be an integer of 64 bits, got {value!r}")

    def explain(self, request: Request) -> str:
        """Which way the steps of a request run, and why.

        Raises:
            ConfigError, UnsupportedError: as `submit`.
        """
        reason = why_not_static_request(request, SearchGroup(request, self.model).search)
        reason = reason or self._why_not_static_rows(request.rows)
        if reason is not None:
            return f"each step runs on its own, from Python: {reason}"
        return self._static_steps.explain()

    def cancel(self, requests: Iterable[Request]) -> None:
        """Drop requests that are not done, now or after the current step."""
        self.scheduler.cancel(requests)
        self._run_or_defer(self._receive, blocking=False)

    def clear(self, blocking: bool = True) -> None:
        """Free the memory, now or after the current step; requests that are not done fail.

        Args:
            blocking: wait for a step of another thread.
        """
        self._run_or_defer(self._clear, blocking)
        if not self.stepping:
            self._call_on_done()

    def _run_or_defer(self, call: Callable[[], None], blocking: bool = True) -> None:
        """Make a call under the lock, or at the end of the current step."""
        if self.stepping or not self.lock.acquire(blocking):
            return self._deferred.append(call)
        try:
            self._stepping_thread = threading.get_ident()
            with device_guard(self.model.device):
                call()
                self._run_deferred()
        finally:
            self._stepping_thread = None
            self.lock.release()

    def _run_deferred(self) -> None:
        while self._deferred:
            self._deferred.pop(0)()

    @property
    def stepping(self) -> bool:
        """Whether this thread is inside a step: in a callback of a request or in the garbage collector."""
        return self._stepping_thread == threading.get_ident() and self.lock._is_owned()  # type: ignore[attr-defined]

    @property
    def exiting(self) -> bool:
        """Whether this thread ends the interpreter, so that no other steps."""
        return self._exiting_thread == threading.get_ident()

    def _clear(self) -> None:
        self._restart()
        self._receive()
        self._fail_waiting([*self.scheduler.waiting], BackendError("the engine was cleared before this was done"))
        self._cache_share, self._cache_limits = CACHE_SHARE, None  # other memory may be free the next time

    def _receive(self) -> None:
        """Queue submitted requests and drop cancelled ones."""
        cancelled = self.scheduler.receive()
        if not cancelled:
            return
        if self._removes(set(cancelled)):
            for request in cancelled:
                self.scheduler.leave(request)
            return
        self._counts.restarts += 1
        self._restart()
        self.scheduler.cancel(cancelled)
        self.scheduler.receive()

    def _removes(self, requests: set[Request]) -> bool:
        """Remove requests from both batches; False where memory ran out, with some of their units left."""
        try:
            with torch.inference_mode():
                self._batch.remove(requests, self.cache)
                if self._static is not None:
                    self._static.remove(requests)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return False
        return True

    @property
    def busy(self) -> bool:
        """Whether a call of `step` would do anything."""
        return bool(self.scheduler.busy or self._done)

    @property
    def statistics(self) -> EngineStatistics:
        """Totals since the engine was made, and the current load."""
        with self.lock:
            counts = replace(
                self._counts, **self._clock.seconds(), waiting=self.scheduler.waiting_count,
                plain=dict(self._counts.plain),
            )  # fmt: skip
            if self._decoder is None:  # not made by a look at it
                return counts
            cache = self._decoder.cache
            pages = cache.allocator.statistics()
            return replace(
                counts, running=self._running_rows, pages=pages.pages, pages_used=pages.pages_used,
                cache_bytes=cache.bytes,
            )  # fmt: skip

    @property
    def _running_rows(self) -> int:
        """Rows of both batches."""
        rows = 0 if self._decoder is None else self._decoder.cache.rows
        return rows if self._static is None else rows + self._static.rows

    def step(self) -> None:
        """Admit waiting requests, then decode one token for every running row, or up to eight where steps are static.

        An exception caused by one request becomes its error. When memory runs out, all running requests return to the
        queue, and half as many rows run from then on until the engine is idle.

        Raises:
            UnsupportedError: this thread is inside a step already.
        """
        if self.stepping:
            raise UnsupportedError(
                "a callback runs inside a step and cannot run another one: it may submit, and read the result after it "
                "has returned"
            )
        if self._exiting_thread is not None and self._exiting_thread != threading.get_ident():
            threading.Event().wait()  # the interpreter ends, and with it this thread
        process_events.run(self._locked_step)

    def _locked_step(self) -> None:
        interrupt: BaseException | None = None
        try:
            with self.lock, device_guard(self.model.device):  # Triton launches on the current GPU
                try:
                    self._stepping_thread = threading.get_ident()
                    self._guarded_step()
                    while self._raised:  # here, where no frame that held tensors is running
                        clear_frames(self._raised.pop())
                    self._run_deferred()
                    interrupt, self._interrupt = self._interrupt, None
                finally:
                    self._stepping_thread = None
        finally:
            self._call_on_done()
        if interrupt is not None:
            try:
                raise interrupt
            finally:
                del interrupt  # its traceback has this frame: a reference cycle

    def _guarded_step(self) -> None:
        try:
            # Requests may come from other threads than this one, so its autocast must not apply to them.
            with torch.inference_mode(), torch.autocast(self.model.device.type, enabled=False):
                return self._step()
        except RecursionError:  # the stack of this thread was nearly used up: not an error of a request
            self._restart()
            raise
        except _StaticFailureError as failure:
            return self._continue_plainly(failure)
        except Exception as error:
            if not (isinstance(error, RuntimeError) and is_out_of_memory(error)):  # of no single request
                self._raised.append(error)
                # Where no request ran, for example because the cache cannot be made, the next step would fail too.
                return self._fail_waiting(self._restart() or self.scheduler.waiting, error)
        except BaseException:  # an interrupt may come between any two lines
            self._restart()
            raise
        # Here and not above: while an exception is handled its traceback keeps the tensors of the step alive.
        self._back_off()

    def _step(self) -> None:
        self._clock.start()
        self._receive()
        self._admit()
        decoder, static = self._decoder, self._static
        if decoder is None or static is None or not (self._batch.groups or static.busy):
            return
        self._clock.lap("admit")
        if static.rows:
            self._run_static(static)
        if self._batch.groups:
            decoding.step_searches(decoder, self._batch.groups)
            self._counts.steps += 1
            self._counts.row_steps += decoder.cache.rows
        self._clock.lap("decode")
        self._remove_finished(decoder.cache, static)
        self._clock.lap("select")

    def _run_static(self, static: StaticBatch) -> None:
        """Run the static batch, for a short time where others wait. If the model has changed, all continue plainly."""
        _static_call(self._static_steps.check_replays)
        steps = _static_call(static.run, bool(self.scheduler.waiting), bool(self._batch.groups))
        self._counts.steps += steps
        self._counts.static_steps += steps

    def _remove_finished(self, cache: Cache, static: StaticBatch) -> None:
        """Remove and finish the requests that are complete or have failed."""
        for request in _static_call(static.remove_finished):
            self._finish(request)
        self._counts.row_steps += static.take_row_steps()
        batch = self._batch
        if not batch.groups:
            return
        batch.report_tokens()
        self._fail_removed(batch.remove_failed(cache))
        for request in batch.remove_finished(cache):
            self._finish(request)
        self._fail_removed(batch.remove_failed(cache))

    # -- entering

    def _admit(self) -> None:
        """Encode the sources of the requests that the scheduler lets in, and append their rows to the batch."""
        running_rows = self._running_rows
        if not self.scheduler.may_admit(running_rows):
            return
        if self._decoder is None:
            self._make_cache()
        admissions = self._admissions(self.scheduler.admit(running_rows, self._capacity()))
        if not admissions:
            return
        self._clock.lap("admit")
        try:
            with self._static_steps.beside(self._static):
                self._prefill(admissions)
        except Exception as error:  # the rows that run are not touched
            failure = RequestFailure.of_step(error)
            if failure is None:
                raise
            for admission in admissions.values():
                self.cache.allocator.release(admission.request)
            return self._fail_removed(dict.fromkeys(admissions, failure))
        self._clock.lap("encode")
        static = self._static_requests(admissions, running_rows)
        if static and self._static is not None:
            joining = {request: admission for request, admission in admissions.items() if request in static}
            _static_call(self._static.join, joining)
        plain = {request: admission for request, admission in admissions.items() if request not in static}
        if plain:
            self._fail_removed(self._batch.join(plain, self.cache))

    def _static_requests(self, entering: Iterable[Request], running_rows: int) -> set[Request]:
        """Those of the entering requests whose steps are static; counts the reasons of the others."""
        requests = [request for request in entering if request.why_not_static is None]
        reason = self._why_not_static_rows(running_rows + sum(request.rows for request in entering))
        joining: set[Request] = set()
        if requests and reason is None and self._static is not None:
            joining = set(self._static.joinable(requests))
            reason = "too many kinds of options run"
        for request in entering:
            if request not in joining:
                why_not = request.why_not_static or reason or ""
                self._counts.plain[why_not] = self._counts.plain.get(why_not, 0) + 1
        return joining

    def _why_not_static_rows(self, rows: int) -> str | None:
        """Why static steps of so many rows do not run, as one clause; None where they do."""
        return self._static_failure or self._static_steps.why_not(rows)

    def _make_cache(self) -> None:
        """Make the cache, and fail the requests that it cannot hold: it may be smaller than when they were checked."""
        capacity = self.cache.allocator
        for request in [*self.scheduler.waiting]:
            try:
                capacity.check_capacity(request.rows, request.positions, len(request.ids))
            except CapacityError as error:
                self._fail_waiting([request], error)

    def _capacity(self) -> Capacity:
        """What the cache can still reserve."""
        used, limits = self.cache.allocator.statistics(), self.cache.allocator.limits
        return Capacity(
            rows=used.rows - used.rows_used, pages=used.pages - used.pages_used - used.pages_reserved, page=limits.page,
            source_pages=used.source_pages - used.source_pages_used, source_page=limits.source_page,
        )  # fmt: skip

    def _admissions(self, entering: list[Request]) -> dict[Request, Admission]:
        """Reserve rows and pages for entering requests; those without adjacent free rows return to the queue."""
        admissions: dict[Request, Admission] = {}
        for request in entering:
            admission = self.cache.admit(request.rows, request.positions, request.source_key, len(request.ids))
            if admission is None:
                self.scheduler.put_back(entering[len(admissions) :])
                break
            admissions[request] = admission
        return admissions

    def _prefill(self, admissions: Mapping[Request, Admission]) -> None:
        """Write the keys and values of new sources into the cache, the longest first, in batches of `encode_tokens`."""
        sources = [(list(request.ids), admission) for request, admission in admissions.items() if admission.new_source]
        sources.sort(key=lambda source: len(source[0]), reverse=True)
        self._counts.shared += len(admissions) - len(sources)
        while sources:
            tokens = itertools.accumulate(len(ids) for ids, _ in sources)
            count = max(1, sum(total <= self.config.encode_tokens for total in tokens))
            batch, sources = sources[:count], sources[count:]
            ids, mask = padded([ids for ids, _ in batch], 0, self.model.device)
            self.model.prefill(ids, mask, self.cache, [admission for _, admission in batch])
            self._counts.encoded += sum(len(ids) for ids, _ in batch)

    # -- leaving

    def _finish(self, request: Request) -> None:
        """Finish a request whose rows were removed."""
        assert request.outputs is not None
        if not request.cancelled:
            request.finish()
            self._done.append(request)
            self._counts.requests += 1
        self._counts.tokens += sum(map(len, request.outputs))
        self.scheduler.leave(request)

    def _fail_removed(self, failures: Mapping[Request, RequestFailure]) -> None:
        """Fail requests whose rows were removed."""
        for request, failure in failures.items():
            self._interrupt = self._interrupt or failure.interrupt
            self._raised.append(failure.error)
            self._fail(request, failure.error, failure.by_callback)
            self.scheduler.leave(request)

    def _fail_waiting(self, requests: Iterable[Request], error: Exception) -> None:
        """Fail waiting requests."""
        requests = list(requests)
        self.scheduler.remove(requests)
        for request in requests:
            self._fail(request, error)

    def _fail(self, request: Request, error: Exception, by_callback: bool = False) -> None:
        if not request.cancelled:
            request.fail(error, by_callback)
            self._done.append(request)
            self._counts.requests += 1

    def _call_on_done(self) -> None:
        """Call `on_done` of the requests that are done; the lock is free."""
        while self._done:
            try:
                request = self._done.popleft()
            except IndexError:  # another thread took the last one
                return
            on_done, request.on_done = request.on_done, None  # so that a closure does not form a cycle with the request
            assert on_done is not None
            try:
                on_done(request)
            except Exception:
                logger.exception("on_done of a request raised an exception")
            except BaseException:
                if threading.current_thread() is not threading.main_thread():  # no caller would get it
                    logger.exception("on_done of a request raised an exception")
                    continue
                on_done(request)  # the interrupt may have come before the call had an effect
                raise

    # -- after errors

    def _restart(self) -> list[Request]:
        """Requeue everything and drop the cache; keyed RNG reproduces the samples. Returns what was running."""
        requests = self.scheduler.requeue()
        self._drop_batch()
        return requests

    def _drop_batch(self) -> None:
        self._batch.clear()
        self._decoder = self._static = None
        self._static_steps.clear()

    def _continue_plainly(self, failure: _StaticFailureError) -> None:
        """Static steps failed: requeue everything. The plain steps tell whether requests are the reason."""
        self._raised.append(failure)  # whose frames hold tensors
        if self._static_steps.why_not(1) is None:  # else the model has changed since the requests entered
            self._static_failure = f"static steps failed: {quoted(failure.error)}"
            logger.warning("%s; steps run plainly from now on", self._static_failure)
        self._restart()

    def _back_off(self) -> None:
        """Memory ran out: requeue everything, drop the cache, and fail the requests that cannot run.

        Where the cache itself did not fit and its size was not given, the next one is half as large.
        """
        self._counts.restarts += 1
        nothing_ran = not self.scheduler.running
        failed = self.scheduler.back_off()
        self._drop_batch()
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
        if not failed:
            return
        if nothing_ran:
            if self.config.cache_bytes is None and self._cache_share > LEAST_SHARE:
                self._cache_share, self._cache_limits = self._cache_share / 2, None
                return
            size = self.config.cache_bytes or f"(by default {self._cache_share:.1%} of the free memory)"
            message = (
                f"out of memory on {self.model.device} for the cache itself: cache_bytes {size} for outputs, and as "
                "much for sources"
            )
        else:
            request, options = failed[0], failed[0].options
            message = (
                f"out of memory on {self.model.device} with request {request.number} alone: "
                f"{len(request.ids)} tokens, num_beams {options.num_beams}, max_length {options.max_length}"
            )
        self._fail_waiting(failed, BackendError(message))
