"""Text in, text out: `Generator`.

Texts become ids, go through the engine, longest first, and come back as texts under the index they came with.
"""

from __future__ import annotations

import copy
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from ..arguments import value_or_alias
from ..config import EngineConfig
from ..config.base import check_callable, check_flag, check_integer
from ..engine import Engine, EngineStatistics, Request, Ticket
from ..errors import BackendError, BertgenError, CallbackError, ConfigError, InputError, quoted
from ..hub import local_directory, split_hub_options
from ..model import EncoderDecoderModel
from ..model.pretrained import resolve_device, resolve_dtype
from ..tokenizer import AutoTokenizer, Tokenizer
from ..tokenizer.special_tokens import Encoded, encode_sources, source_frame
from .answer import Answer
from .background_worker import Worker
from .call_options import Call, checked_call, checked_truncation
from .output import Output
from .pickles import Origin, from_model, reduced
from .progress import shown
from .scorer import Likelihood, Scorer
from .texts import LOOKAHEAD, checked_texts, in_windows

# Arguments of `EncoderDecoderModel.from_pretrained` that a Generator which loads one takes as well.
LOADING = frozenset(
    "config device_map use_safetensors variant state_dict key_mapping ignore_mismatched_sizes quantization_config "
    "load_in_4bit load_in_8bit generation_config fold_embeddings".split()
)
MAX_INDEX = 2**62  # of a text: an index is drawn with, and counted on from


@dataclass(frozen=True)
class _Source:
    """A text that was encoded."""

    index: int
    ids: list[int]
    truncated: bool


class Generator:
    """Generates texts from texts with one model.

    Args:
        model: an EncoderDecoderModel (put into evaluation mode), or the path or hub id of one, or "demo".
        tokenizer: a tokenizer or where to load it from; by default it is loaded from where the model is.
        device: "cpu", "cuda", "cuda:1" or a CUDA index; None leaves a model where it is and loads one to the CPU.
        dtype: of the weights. None takes the checkpoint's, but float32 on a CPU, where 16 bits are slower; "auto"
            takes the checkpoint's wherever it runs.
        max_input_length: longest text in tokens; by default what the encoder has positions for.
        truncation: cut longer texts instead of refusing them.
        add_special_tokens: put the tokenizer's special tokens around a text; None does where the encoder is a BERT or
            RoBERTa, and not where it is a bert-generation encoder (its models were trained without).
        engine: limits of what runs at a time (`EngineConfig`), or options of it: `max_rows`, `cache_bytes`,
            `encode_tokens`, `refill`. Where the memory does not suffice for them, fewer rows run.
        loading: arguments of `EncoderDecoderModel.from_pretrained` (`LOADING`, and those of the hub), for a model that
            is loaded.

    Raises:
        CheckpointError, ConfigError, BackendError: as `EncoderDecoderModel.from_pretrained`.
        ConfigError: no tokenizer, one of another vocabulary, or an option outside its limits.

    A Generator may be used from several threads, and as a context manager, whose end frees the memory of the engine.
    It can be pickled and copied, without what is in flight: one that was loaded as the place it was loaded from and a
    digest of its weights, by which another process loads it again (CheckpointError if there are others now), one whose
    model was given or changed since as that model.
    What goes wrong with one text, or in a function that was given with it, is that text's error; the others go on. Such
    a function may `submit`, `close` and cancel, but not wait for another answer of this Generator.
    """

    def __init__(
        self,
        model: EncoderDecoderModel | str | os.PathLike,
        tokenizer: Tokenizer | str | os.PathLike | None = None,
        *,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | str | None = None,
        max_input_length: int | None = None,
        truncation: bool = False,
        add_special_tokens: bool | None = None,
        engine: EngineConfig | None = None,
        max_rows: int | None = None,
        cache_bytes: int | None = None,
        encode_tokens: int | None = None,
        refill: float | None = None,
        **loading: Any,
    ):
        self.origin: Origin | None = None
        dtype = value_or_alias(dtype, loading, "torch_dtype")
        others, hub = split_hub_options(loading)
        if unknown := others.keys() - LOADING:
            raise ConfigError(f"Generator has no option {', '.join(map(repr, sorted(unknown)))}")
        if not isinstance(model, (EncoderDecoderModel, str, os.PathLike)):
            raise ConfigError(
                f"model must be an EncoderDecoderModel of bertgen, a path or a hub id, got {quoted(model)}"
            )
        if tokenizer is not None and not isinstance(tokenizer, (Tokenizer, str, os.PathLike)):
            raise ConfigError(f"tokenizer must be a Tokenizer of bertgen, a path or a hub id, got {quoted(tokenizer)}")
        if isinstance(model, EncoderDecoderModel):
            if tokenizer is None or hub or others or isinstance(dtype, str):
                raise ConfigError(
                    "a model object needs a tokenizer, a torch.dtype or none, and no options of loading: "
                    f"{', '.join([*hub, *others]) or dtype or 'the tokenizer is missing'}"
                )
            target = None if device is None else resolve_device(device)
            self.model = model.to(device=target, dtype=None if dtype is None else resolve_dtype(dtype)).eval()
        else:
            local_directory(model)  # a file would do for a tokenizer
            if tokenizer is None:
                tokenizer = AutoTokenizer.from_pretrained(model, **hub)
            self.model = EncoderDecoderModel.from_pretrained(model, device=device, dtype=dtype, **hub, **others)
            if dtype is None and self.model.device.type == "cpu":
                self.model.float()
            if not others:  # which may hold weights, and say how the model is built
                self.origin = Origin.of(self.model, model, dtype=dtype, **hub)
        if isinstance(tokenizer, (str, os.PathLike)):  # another place, of which there may be no such revision
            tokenizer = AutoTokenizer.from_pretrained(tokenizer, **{k: v for k, v in hub.items() if k != "revision"})
        self.tokenizer = tokenizer

        config = self.model.config
        for half, name in ((config.encoder, "encoder"), (config.decoder, "decoder")):
            if tokenizer.vocab_size > half.vocab_size:
                raise ConfigError(
                    f"the tokenizer has {tokenizer.vocab_size} pieces, the {name} a vocabulary of {half.vocab_size}"
                )
        positions = config.encoder.max_tokens
        self.max_input_length = (
            positions if max_input_length is None else check_integer(1, max_input_length, "max_input_length")
        )
        if self.max_input_length > positions:
            raise ConfigError(f"max_input_length {max_input_length} is more than the encoder's {positions} positions")
        limits: dict[str, Any] = dict(
            max_rows=max_rows,
            cache_bytes=cache_bytes,
            encode_tokens=encode_tokens,
            refill=refill,
        )
        given = {name: value for name, value in limits.items() if value is not None}
        if engine is not None and given:
            raise ConfigError(f"engine, or {', '.join(given)}: not both")
        if engine is not None and not isinstance(engine, EngineConfig):
            raise ConfigError(f"engine must be an EngineConfig, got {quoted(engine)}")
        self.engine = Engine(self.model, engine or EngineConfig(**given))
        self.encode_tokens = self.engine.config.encode_tokens
        self._worker = Worker(self.engine, self)
        self.truncation = bool(checked_truncation(truncation))
        self.frame = source_frame(config, tokenizer) if add_special_tokens is None else ([], [])
        if add_special_tokens is not None and check_flag(add_special_tokens, "add_special_tokens"):
            self.frame = tokenizer.frame(pair=False)[::2]
        if sum(map(len, self.frame)) >= self.max_input_length:
            raise ConfigError(f"max_input_length {max_input_length} leaves no room between the special tokens")
        self.options: dict[str, Any] = dict(
            max_input_length=max_input_length, truncation=self.truncation, add_special_tokens=add_special_tokens,
            engine=engine or EngineConfig(**given),
        )  # fmt: skip

    def generate(
        self,
        texts: Sequence[str],
        *,
        seed: int | None = None,
        scores: bool = False,
        truncation: bool | None = None,
        clean_up_tokenization_spaces: bool | None = None,
        max_batch_size: int | None = None,
        progress: bool | Callable[[int, int], Any] = False,
        **options: Any,
    ) -> list[Output]:
        """Generate for all texts; the outputs come in the order of the texts.

        A text without tokens (nothing, or only spaces) is answered by an empty output, without asking the model.
        A draw depends on the seed, the index of the text and the step, and on nothing else: not on what other texts
        there are, nor on limits.

        Args:
            texts: all are checked before the first is generated.
            seed: of sampling; None draws one from torch's default generator.
            scores: score greedy and sampled outputs too.
            truncation: as the constructor's, for this call.
            clean_up_tokenization_spaces: take spaces before punctuation out; None as the tokenizer is set.
            max_batch_size: as many texts at a time, and no more before all of them are done.
            progress: True shows a bar on stderr; a function is called with how many texts are done, of how many.
            options: `generation_config` or options of `GenerationConfig`, over the model's own; and `logits_processor`,
                `stopping_criteria`, `prefix_allowed_tokens_fn` as of `model.generate`, which see one text at a time
                (and its index, where they are told of a source). Where nothing sets a maximum length, outputs end with
                the decoder's positions. `max_time` counts for each text from when its turn has come.

        Raises:
            InputError: a text is no str, no valid Unicode or too long: its index, the value and the limit.
            CapacityError: a text with its beams needs more rows or cache than there are.
            ConfigError, UnsupportedError: bad options; called from a function of another text.
            BackendError: a single text does not fit into memory.
            CallbackError: a function that was given raised no Exception but SystemExit or the like. Exceptions are
                raised as they are.
        """
        texts = list(checked_texts(texts))
        call = checked_call(
            self.model,
            options,
            seed=seed,
            scores=scores,
            truncation=truncation,
            clean_up=clean_up_tokenization_spaces,
            max_batch_size=max_batch_size,
        )
        answers: dict[int, Output] = {}
        with shown(progress, len(texts)) as show:
            for index, output in self._answers([texts], call):
                answers[index] = output
                show(len(answers), len(texts))
        return [answers[index] for index in range(len(answers))]

    def stream(
        self,
        texts: Iterable[str],
        *,
        seed: int | None = None,
        scores: bool = False,
        truncation: bool | None = None,
        clean_up_tokenization_spaces: bool | None = None,
        max_batch_size: int | None = None,
        return_errors: bool = False,
        lookahead: int = LOOKAHEAD,
        first: int = 0,
        **options: Any,
    ) -> Iterator[tuple[int, Output]]:
        """Generate for the texts of any iterable, however long; yields (index, output) as each is done.

        Arguments and errors as `generate`, and:
            return_errors: answer a text that cannot be used, that does not fit into memory by itself, or whose
                functions fail, by an empty output with its `error`, instead of raising.
            lookahead: texts to read before the first answer; the longest are begun first, and all of them are answered
                before the next is read.
            first: index of the first text.
        """
        texts, lookahead = checked_texts(texts), check_integer(1, lookahead, "lookahead")
        first = check_integer(0, first, "first", MAX_INDEX)
        call = checked_call(
            self.model,
            options,
            seed=seed,
            scores=scores,
            truncation=truncation,
            clean_up=clean_up_tokenization_spaces,
            max_batch_size=max_batch_size,
            return_errors=return_errors,
        )
        return self._answers(in_windows(texts, lookahead), call, first)

    def submit(
        self,
        text: str,
        *,
        seed: int | None = None,
        scores: bool = False,
        truncation: bool | None = None,
        clean_up_tokenization_spaces: bool | None = None,
        on_tokens: Callable[[list[int]], Any] | None = None,
        **options: Any,
    ) -> Future[Output]:
        """Generate for one text in the background, together with whatever else is in the engine.

        Arguments and errors as `generate`; what concerns the text itself is raised here. And:
            on_tokens: is called with the newest token of each output as it is chosen, by the thread that works; not
                with beams, which change their past. What it raises is the future's error.

        Returns:
            A future of the output (index 0). `cancel()` takes the text out of the engine as long as it is not done. At
            the end of the interpreter what is not done gets a BackendError. What `add_done_callback` was given is
            called by the thread that works: as long as it runs, futures wait, and so it may ask one for its `result`,
            but not wait for several (`concurrent.futures.wait`, `as_completed`).
        """
        call = checked_call(
            self.model, options, seed=seed, scores=scores, truncation=truncation, clean_up=clean_up_tokenization_spaces
        )
        check_callable(on_tokens, "on_tokens")
        beams = call.settled.num_beams
        if on_tokens is not None and beams > 1:
            raise ConfigError(f"on_tokens cannot be used with num_beams {beams}: beams change their past")
        future = Answer(self._worker)
        (found,) = self._encode([text], 0, call)
        if isinstance(found, Output):
            future.set_result(found)
            return future

        def answer(ticket: Ticket) -> None:
            if future.done() or not (future.running() or future.set_running_or_notify_cancel()):
                return
            try:
                output = self._output(ticket, found, call)
            except Exception as error:
                future.set_exception(error)
            else:
                future.set_result(output)

        tickets = self.engine.submit([self._request(found, call, on_tokens)], answer)
        engine = self.engine  # the future outlives the Generator
        future.add_done_callback(lambda future: engine.cancel(tickets) if future.cancelled() else None)
        try:
            self._worker.wake()
        except BackendError:
            engine.cancel(tickets)
            raise
        return future

    def warm_up(self) -> None:
        """Take the memory, choose and compile the kernels now and not at the first text."""
        call = checked_call(self.model, dict(max_new_tokens=2, num_beams=1, do_sample=False))
        list(self._generated([_Source(0, [0] * 2, False)], call))

    @property
    def statistics(self) -> EngineStatistics:
        """What the engine has done so far, and what it holds."""
        return self.engine.statistics

    def close(self) -> None:
        """Drop what is not done and free the memory of the engine; a later call takes it again."""
        self.engine.clear()

    def __reduce__(self) -> tuple[Any, ...]:
        return reduced(self)

    def __copy__(self) -> Generator:
        """Another one with the same model; nothing in flight is shared."""
        other = from_model(type(self), self.model, self.tokenizer, self.options)
        other.origin = self.origin
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> Generator:
        return from_model(
            type(self), copy.deepcopy(self.model, memo), copy.deepcopy(self.tokenizer, memo), self.options
        )

    def __enter__(self) -> Generator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def score(
        self,
        sources: Sequence[str],
        targets: Sequence[str | Sequence[int]],
        *,
        length_penalty: float | None = None,
        truncation: bool | None = None,
    ) -> list[Likelihood]:
        """Log-probabilities that the model gives to one target for each source, in the order of the sources.

        Args:
            sources: texts, as for `generate`; a source that occurs more than once is encoded once.
            targets: a text gets the end token behind it, as in training; ids, such as `Output.token_ids`, stay as
                they are.
            length_penalty: of `Likelihood.score`; None takes the model's, as `generate` does.
            truncation: of sources, as the constructor's, for this call. Targets are never cut.

        Raises:
            InputError: not as many targets as sources; a source without tokens; a text or ids that cannot be used or
                are too long: the index, the value and the limit.
            ConfigError: bad options. BackendError: a single pair does not fit into memory.
        """
        sources, targets = list(checked_texts(sources, "sources")), list(checked_texts(targets, "targets"))
        if len(sources) != len(targets):
            raise InputError(f"{len(sources)} sources and {len(targets)} targets: each source needs one")
        scorer = Scorer(self, length_penalty, checked_truncation(truncation), return_errors=False)
        found = dict(scorer.answers([list(zip(sources, targets, strict=True))]))
        return [found[index] for index in range(len(found))]

    def stream_scores(
        self,
        pairs: Iterable[tuple[str, str | Sequence[int]]],
        *,
        length_penalty: float | None = None,
        truncation: bool | None = None,
        return_errors: bool = False,
        lookahead: int = LOOKAHEAD,
    ) -> Iterator[tuple[int, Likelihood]]:
        """Score the pairs (source, target) of any iterable, however long; yields (index, likelihood) by batches.

        Arguments and errors as `score`, and:
            return_errors: answer a pair that cannot be used by a Likelihood with its `error`, instead of raising.
            lookahead: pairs to read before the first answer; all of them are answered before the next is read.
        """
        pairs, lookahead = checked_texts(pairs, "pairs"), check_integer(1, lookahead, "lookahead")
        return_errors = check_flag(return_errors, "return_errors")
        scorer = Scorer(self, length_penalty, checked_truncation(truncation), return_errors)
        return scorer.answers(in_windows(pairs, lookahead))

    def encode_sources(self, texts: Sequence[str], truncation: bool | None = None) -> list[Encoded]:
        """Texts as the encoder reads them, special tokens included; what is wrong with one stands in its `problem`."""
        return encode_sources(
            list(checked_texts(texts)),
            self.tokenizer,
            self.frame,
            limit=self.max_input_length,
            vocabulary=self.model.config.encoder.vocab_size,
            truncation=self.truncation if truncation is None else bool(checked_truncation(truncation)),
        )

    def _answers(self, windows: Iterable[list[str]], call: Call, first: int = 0) -> Iterator[tuple[int, Output]]:
        for window in windows:
            sources = []
            for found in self._encode(window, first, call):
                if isinstance(found, Output):
                    yield found.index, found
                else:
                    sources.append(found)
            sources.sort(key=lambda source: len(source.ids), reverse=True)
            size = call.max_batch_size or len(sources) or 1
            for start in range(0, len(sources), size):
                yield from self._generated(sources[start : start + size], call)
            first += len(window)

    def _encode(self, texts: list[str], first: int, call: Call) -> list[_Source | Output]:
        """Encode texts, the first of which has the index `first`; what needs no model is answered here."""
        rows = self.encode_sources(texts, call.truncation)
        found: list[_Source | Output] = []
        for index, row in enumerate(rows, first):
            if row.problem is not None:
                if not call.return_errors:
                    raise InputError(f"text {index}: {row.problem}")
                found.append(Output(index, "", error=InputError(row.problem)))
            else:
                found.append(_Source(index, row.ids, row.truncated) if row.ids else Output(index, ""))
        return found

    def _generated(self, sources: list[_Source], call: Call) -> Iterator[tuple[int, Output]]:
        """Outputs of sources, as they are done; drives the engine meanwhile."""
        finished: deque[Ticket] = deque()
        process = os.getpid()
        tickets = self.engine.submit([self._request(source, call) for source in sources], finished.append)
        waiting = dict(zip(tickets, sources, strict=True))
        try:
            while waiting:
                if os.getpid() != process:
                    raise BackendError(f"begun by process {process}, of which this is a fork: it cannot go on here")
                if not finished:
                    self.engine.step()
                while finished:
                    ticket = finished.popleft()
                    source = waiting.pop(ticket, None)
                    if source is not None:  # told twice, as an interrupt came to another thread meanwhile
                        yield source.index, self._output(ticket, source, call)
        finally:
            self.engine.cancel(waiting)

    def _request(self, source: _Source, call: Call, on_tokens: Callable[[list[int]], Any] | None = None) -> Request:
        return Request(
            source.ids, call.settled, seed=call.seed, number=source.index, scored=call.scores,
            tokenizer=self.tokenizer, on_tokens=on_tokens, **call.called,
        )  # fmt: skip

    def _output(self, ticket: Ticket, source: _Source, call: Call) -> Output:
        """What a ticket holds, as texts."""
        if ticket.error is not None:
            error = ticket.error
            if call.return_errors and ticket.called and not isinstance(error, BertgenError):
                error = CallbackError(f"a function of the request raised {error!r}")
                error.__cause__ = ticket.error
            if call.return_errors and isinstance(error, BertgenError):
                return Output(source.index, "", truncated=source.truncated, error=error)
            raise error
        rows, scores = ticket.outputs or [], ticket.scores or []
        texts = self._texts(rows, call.clean_up)
        best, *others = (
            Output(source.index, text, tuple(row), score, truncated=source.truncated)
            for text, row, score in zip(texts, rows, scores, strict=True)
        )
        return replace(best, alternatives=tuple(others), input_tokens=len(source.ids))

    def _texts(self, rows: list[list[int]], clean_up: bool | None) -> list[str]:
        """The texts of ids, of which those without a piece spell nothing: a model may have more than its tokenizer."""
        decode = partial(self.tokenizer.batch_decode, skip_special_tokens=True, clean_up_tokenization_spaces=clean_up)
        try:
            return decode(rows)
        except InputError:
            strange = {token for row in rows for token in row if not self._spells(token)}
            return decode([[token for token in row if token not in strange] for row in rows])

    def _spells(self, token: int) -> bool:
        try:
            self.tokenizer.decode([token])
        except InputError:
            return False
        return True
