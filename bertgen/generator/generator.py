"""Text in, text out: `Generator`.

Each text is encoded into a `Request`. The engine runs the requests, longest source first, and each becomes the `Output`
of its text's index.
"""

from __future__ import annotations

import copy
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import torch

from ..arguments import value_or_alias
from ..config import EngineConfig
from ..config.validators import check_callable, check_flag, check_integer
from ..engine import Engine, EngineStatistics, Request
from ..errors import BackendError, ConfigError, InputError, quoted
from ..hub import local_directory, split_hub_options
from ..model import EncoderDecoderModel
from ..model.devices import resolve_device
from ..model.dtypes import resolve_dtype
from ..tokenizer import AutoTokenizer, Tokenizer
from ..tokenizer.special_tokens import Encoded, source_special_tokens
from .background_worker import BackgroundWorker
from .call_options import CallOptions, checked_truncation
from .engine_group import EngineGroup
from .output import Output, output_of
from .output_future import OutputFuture
from .pickles import Origin, from_model, reduce_generator
from .progress import progress_callback
from .scorer import Likelihood, Scorer
from .text_encoder import TextEncoder
from .texts import LOOKAHEAD, checked_texts, in_windows

# Arguments of `EncoderDecoderModel.from_pretrained` that a Generator takes as well where it loads the model.
LOADING = frozenset(
    "config device_map use_safetensors variant state_dict key_mapping ignore_mismatched_sizes quantization_config "
    "load_in_4bit load_in_8bit generation_config fold_embeddings".split()
)
WARM_BATCH = 64  # texts
MAX_INDEX = 2**62  # of the first text: an index is part of the key of random numbers, which has 64 bits


class Generator:
    """Generates texts from texts with one model.

    Args:
        model: an EncoderDecoderModel (put into evaluation mode), or the path or hub id of one, or "demo".
        tokenizer: a tokenizer or where to load it from; by default it is loaded from where the model is.
        device: "cpu", "cuda", "cuda:1" or a CUDA index; None leaves a model where it is and loads one to the CPU.
        devices: several of them, in place of `device`. Each has a copy of the model, made now, and works in a thread of
            its own; the texts wait in one queue. Outputs are those of one device, but for rounding. `score` runs
            on the first device.
        dtype: of the weights. None takes the checkpoint's, but float32, the most exact, on a CPU; "auto" takes
            the checkpoint's wherever it runs.
        max_input_length: longest text in tokens; by default the encoder's number of positions.
        truncation: cut longer texts instead of raising an error.
        add_special_tokens: put the tokenizer's special tokens around a text. None does so for a BERT or RoBERTa
            encoder, and not for a bert-generation encoder, whose models were trained without them.
        engine: limits of the engine (`EngineConfig`), or options of it: `max_rows`, `cache_bytes`, `encode_tokens`,
            `refill`. When memory runs out, fewer rows run.
        loading: arguments of `EncoderDecoderModel.from_pretrained` (`LOADING`, and those of the hub), for a model that
            is loaded.

    Raises:
        CheckpointError, ConfigError, BackendError: as `EncoderDecoderModel.from_pretrained`.
        ConfigError: no tokenizer, one of another vocabulary, or an option outside its limits; no devices, or `device`
            and `devices`.

    A Generator may be used from several threads, and as a context manager that frees the memory of the engine at its
    end. It can be pickled and copied, without requests in flight. A Generator that loaded its model is pickled as the
    path and a digest of the weights; another process loads the model again (CheckpointError if its weights differ). A
    Generator whose model was passed as an object, or changed since, is pickled with the model.
    An exception that one text or one of its callbacks causes is the error of that text; other texts are not affected. A
    callback may `submit`, `close` and cancel, but not wait for another result of this Generator.
    """

    def __init__(
        self,
        model: EncoderDecoderModel | str | os.PathLike,
        tokenizer: Tokenizer | str | os.PathLike | None = None,
        *,
        device: torch.device | str | int | None = None,
        devices: Sequence[torch.device | str | int] | None = None,
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
        chosen = _checked_devices(device, devices, loading)
        if chosen:
            device = chosen[0]
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
            local_directory(model)  # refuses a file, which AutoTokenizer would accept
            if tokenizer is None:
                tokenizer = AutoTokenizer.from_pretrained(model, **hub)
            self.model = EncoderDecoderModel.from_pretrained(model, device=device, dtype=dtype, **hub, **others)
            if dtype is None and self.model.device.type == "cpu":
                self.model.float()
            if not others:  # other arguments may hold weights or change how the model is built
                self.origin = Origin.of(self.model, model, dtype=dtype, **hub)
        if isinstance(tokenizer, (str, os.PathLike)):  # of another repository, where the revision may not exist
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
        limits = {name: value for name, value in limits.items() if value is not None}
        if engine is not None and limits:
            raise ConfigError(f"pass engine or {', '.join(limits)}, not both")
        if engine is not None and not isinstance(engine, EngineConfig):
            raise ConfigError(f"engine must be an EngineConfig, got {quoted(engine)}")
        engine = engine or EngineConfig(**limits)
        self.devices = chosen or [self.model.device]
        self.engine: Engine | EngineGroup
        self._worker: BackgroundWorker | EngineGroup
        if len(self.devices) == 1:
            self.engine = Engine(self.model, engine)
            self._worker = BackgroundWorker(self.engine, self)
        else:
            copies = [copy.deepcopy(self.model).to(one) for one in self.devices[1:]]
            self.engine = self._worker = EngineGroup([self.model, *copies], engine)
        self.encode_tokens = self.engine.config.encode_tokens
        self.truncation = bool(checked_truncation(truncation))
        self.special_tokens = source_special_tokens(config, tokenizer) if add_special_tokens is None else ([], [])
        if add_special_tokens is not None and check_flag(add_special_tokens, "add_special_tokens"):
            self.special_tokens = tokenizer.frame(pair=False)[::2]
        if sum(map(len, self.special_tokens)) >= self.max_input_length:
            raise ConfigError(f"max_input_length {max_input_length} leaves no room between the special tokens")
        self.options: dict[str, Any] = dict(
            max_input_length=max_input_length, truncation=self.truncation, add_special_tokens=add_special_tokens,
            engine=engine,
        )  # fmt: skip
        if len(self.devices) > 1:
            self.options["devices"] = [str(one) for one in self.devices]

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

        A text without tokens (empty, or only spaces) gives an empty output without a call of the model. A sample
        depends on the seed, the index of the text and the step only, not on other texts or on limits.

        Args:
            texts: all are checked before the first is generated.
            seed: of sampling; None takes one from torch's default generator.
            scores: score greedy and sampled outputs too.
            truncation: as the constructor's, for this call.
            clean_up_tokenization_spaces: remove spaces before punctuation; None as the tokenizer is set.
            max_batch_size: texts at a time; all of them are done before the next ones begin.
            progress: True shows a bar on stderr; a function is called with the number of texts done, and of all.
            options: `generation_config` or options of `GenerationConfig`, which override the model's own; and
                `logits_processor`, `stopping_criteria`, `prefix_allowed_tokens_fn` as of `model.generate`. These see
                one text at a time; the index of a source is the text's index. Without a maximum length, outputs end at
                the decoder's last position. `max_time` of each text begins when the text begins to run.

        Raises:
            InputError: a text is not a str, not valid Unicode or too long: its index, the value and the limit.
            CapacityError: a text with its beams needs more rows or cache than there are.
            ConfigError, UnsupportedError: bad options; a call from a callback of another text.
            BackendError: a single text does not fit into memory.
            CallbackError: a callback raised SystemExit or another exception that is not an `Exception`. An `Exception`
                is raised as it is.
        """
        texts = list(checked_texts(texts))
        call = CallOptions.checked(
            self.model,
            options,
            seed=seed,
            scores=scores,
            truncation=truncation,
            clean_up=clean_up_tokenization_spaces,
            max_batch_size=max_batch_size,
        )
        outputs: dict[int, Output] = {}
        with progress_callback(progress, len(texts)) as report:
            for index, output in self._outputs([texts], call):
                outputs[index] = output
                report(len(outputs), len(texts))
        return [outputs[index] for index in range(len(outputs))]

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
            return_errors: yield an empty output with its `error`, instead of raising, for a text that cannot be used,
                that does not fit into memory alone, or whose callback fails.
            lookahead: texts to read before the first output. The longest begin first, and all of them are done before
                the next text is read.
            first: index of the first text.
        """
        texts, lookahead = checked_texts(texts), check_integer(1, lookahead, "lookahead")
        first = check_integer(0, first, "first", MAX_INDEX)
        call = CallOptions.checked(
            self.model,
            options,
            seed=seed,
            scores=scores,
            truncation=truncation,
            clean_up=clean_up_tokenization_spaces,
            max_batch_size=max_batch_size,
            return_errors=return_errors,
        )
        return self._outputs(in_windows(texts, lookahead), call, first)

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
        """Generate for one text in the background, together with other requests of the engine.

        Arguments and errors as `generate`; errors of the text itself are raised here. And:
            on_tokens: called with the newest token of each output after every step, by the thread that steps. Not with
                beams, which change earlier tokens. An exception that it raises becomes the future's error.

        Returns:
            A future of the output (index 0). `cancel()` removes the text from the engine while it is not done. At the
            end of the interpreter, texts that are not done get a BackendError. Functions passed to `add_done_callback`
            are called by the thread that steps; other futures wait meanwhile. Such a function may call `result` of one
            future, but not wait for several (`concurrent.futures.wait`, `as_completed`).
        """
        call = CallOptions.checked(
            self.model, options, seed=seed, scores=scores, truncation=truncation, clean_up=clean_up_tokenization_spaces
        )
        check_callable(on_tokens, "on_tokens")
        beams = call.generation.num_beams
        if on_tokens is not None and beams > 1:
            raise ConfigError(f"on_tokens cannot be used with num_beams {beams}: beams change earlier tokens")
        future = OutputFuture(self.engine, self._worker)
        (request,) = self._encode([text], 0, call)
        if isinstance(request, Output):
            future.set_result(request)
            return future
        request.on_tokens = on_tokens

        def set_result(request: Request) -> None:
            if future.done() or not (future.running() or future.set_running_or_notify_cancel()):
                return
            if request.error is not None:  # not raised here: its traceback would have this frame with the future
                return future.set_exception(request.error)
            try:
                output = output_of(request, self.tokenizer, call.clean_up, call.return_errors)
            except Exception as error:
                future.set_exception(error)
            else:
                future.set_result(output)

        engine = self.engine  # the future may outlive the Generator
        requests = engine.submit([request], set_result)
        future.add_done_callback(lambda future: engine.cancel(requests) if future.cancelled() else None)
        try:
            self._worker.wake()
        except BackendError:
            engine.cancel(requests)
            raise
        return future

    def warm_up(self) -> None:
        """Allocate memory, and choose and compile kernels now instead of at the first text.

        On a GPU steps are also captured as CUDA graphs: greedy search, and the model's own options where these differ,
        for one text and for a batch of WARM_BATCH.
        """
        for engine in self.engine.engines if isinstance(self.engine, EngineGroup) else [self.engine]:
            for call, count in self._warm_up_calls(engine):
                list(self._run([self._request(i, Encoded([0] * 2), call) for i in range(count)], call, engine))

    def _warm_up_calls(self, engine: Engine) -> list[tuple[CallOptions, int]]:
        """Options and numbers of texts that an engine is warmed up with."""
        greedy: dict[str, Any] = dict(num_beams=1, do_sample=False, num_return_sequences=1)
        kinds, counts = [greedy], [1]
        if engine.model.device.type == "cuda":
            own = self.model.generation_config
            kinds += [{}] * bool((own.num_beams or 1) > 1 or own.do_sample)
            counts.append(WARM_BATCH)
        calls = []
        for kind in kinds:
            call = CallOptions.checked(self.model, dict(max_new_tokens=2, **kind))
            rows = max(call.generation.num_beams, call.generation.num_return_sequences)
            most = max(1, engine.config.max_rows // rows)
            calls += [(call, min(count, most)) for count in counts]
        return calls

    @property
    def statistics(self) -> EngineStatistics:
        """Totals of the engine, and its current load; with several devices, sums over all of them."""
        return self.engine.statistics

    def close(self) -> None:
        """Drop requests that are not done and free the memory of the engine; a later call allocates it again."""
        self.engine.clear()

    def __reduce__(self) -> tuple[Any, ...]:
        return reduce_generator(self)

    def explain(
        self, *, scores: bool = False, on_tokens: Callable[[list[int]], Any] | None = None, **options: Any
    ) -> str:
        """Which way the decode steps of a text with these options run, and why.

        Args:
            scores, options: as of `generate`. on_tokens: as of `submit`.

        Raises:
            ConfigError, UnsupportedError: bad options.
        """
        call = CallOptions.checked(self.model, options, scores=scores)
        return self.engine.explain(
            Request((0,), call.generation, scored=call.scores, tokenizer=self.tokenizer, on_tokens=on_tokens,
                    **call.callbacks)
        )  # fmt: skip

    def __copy__(self) -> Generator:
        """A Generator with the same model and an engine without requests."""
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
            targets: a text is followed by the end token, as in training; ids, such as `Output.token_ids`, are used as
                they are.
            length_penalty: of `Likelihood.score`; None takes the model's, as `generate` does.
            truncation: of sources, as the constructor's, for this call. Targets are never cut.

        Raises:
            InputError: another number of targets than of sources; a source without tokens; a text or ids that cannot be
                used or are too long: the index, the value and the limit.
            ConfigError: bad options. BackendError: a single pair does not fit into memory.
        """
        sources, targets = list(checked_texts(sources, "sources")), list(checked_texts(targets, "targets"))
        if len(sources) != len(targets):
            raise InputError(f"{len(sources)} sources and {len(targets)} targets: each source needs one")
        scorer = self._scorer(length_penalty, truncation, return_errors=False)
        likelihoods = dict(scorer.likelihoods([list(zip(sources, targets, strict=True))]))
        return [likelihoods[index] for index in range(len(likelihoods))]

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
            return_errors: yield a Likelihood with its `error`, instead of raising, for a pair that cannot be used.
            lookahead: pairs to read before the first result; all of them are done before the next pair is read.
        """
        pairs, lookahead = checked_texts(pairs, "pairs"), check_integer(1, lookahead, "lookahead")
        scorer = self._scorer(length_penalty, truncation, check_flag(return_errors, "return_errors"))
        return scorer.likelihoods(in_windows(pairs, lookahead))

    def encode_sources(self, texts: Sequence[str], truncation: bool | None = None) -> list[Encoded]:
        """Texts as the encoder reads them, with special tokens; `reason` of each says why it cannot be used."""
        return self._text_encoder.sources(list(checked_texts(texts)), checked_truncation(truncation))

    @property
    def _text_encoder(self) -> TextEncoder:
        return TextEncoder(self.model, self.tokenizer, self.special_tokens, self.max_input_length, self.truncation)

    def _scorer(self, length_penalty: float | None, truncation: bool | None, return_errors: bool) -> Scorer:
        return Scorer(
            self.model,
            self._text_encoder,
            encode_tokens=self.encode_tokens,
            length_penalty=length_penalty,
            truncation=checked_truncation(truncation),
            return_errors=return_errors,
        )

    def _outputs(self, windows: Iterable[list[str]], call: CallOptions, first: int = 0) -> Iterator[tuple[int, Output]]:
        """(index, output) of the texts of each window as they are done; `first` is the index of the first text."""
        for texts in windows:
            requests = []
            for encoded in self._encode(texts, first, call):
                if isinstance(encoded, Output):
                    yield encoded.index, encoded
                else:
                    requests.append(encoded)
            requests.sort(key=lambda request: len(request.ids), reverse=True)
            size = call.max_batch_size or len(requests) or 1
            for start in range(0, len(requests), size):
                yield from self._run(requests[start : start + size], call)
            first += len(texts)

    def _encode(self, texts: list[str], first: int, call: CallOptions) -> list[Request | Output]:
        """The request of each text; the output of a text without tokens, or of one with an error."""
        encoded: list[Request | Output] = []
        for index, source in enumerate(self._text_encoder.sources(texts, call.truncation), first):
            if source.problem is not None:
                if not call.return_errors:
                    raise InputError(f"text {index}: {source.problem}")
                encoded.append(Output(index, "", error=InputError(source.problem)))
            else:
                encoded.append(self._request(index, source, call) if source.ids else Output(index, ""))
        return encoded

    def _request(self, index: int, source: Encoded, call: CallOptions) -> Request:
        return Request(
            source.ids, call.generation, seed=call.seed, number=index, scored=call.scores, truncated=source.truncated,
            tokenizer=self.tokenizer, **call.callbacks,
        )  # fmt: skip

    def _run(
        self, requests: list[Request], call: CallOptions, engine: Engine | EngineGroup | None = None
    ) -> Iterator[tuple[int, Output]]:
        """(index, output) of requests as they are done; steps the engine, or the one that is passed, meanwhile."""
        engine = engine or self.engine
        done: deque[Request] = deque()
        process = os.getpid()
        unfinished = dict.fromkeys(engine.submit(requests, done.append))
        try:
            while unfinished:
                if os.getpid() != process:
                    raise BackendError(
                        f"process {process} began this call, and this process is a fork of it: it cannot continue here"
                    )
                if not done:
                    engine.step()
                while done:
                    request = done.popleft()
                    if request in unfinished:  # an interrupt in another thread may report a request twice
                        del unfinished[request]
                        output = output_of(request, self.tokenizer, call.clean_up, call.return_errors)
                        yield request.number, output
        finally:
            engine.cancel(unfinished)


def _checked_devices(device: Any, devices: Any, loading: dict[str, Any]) -> list[torch.device]:
    """The devices of the argument `devices`; empty where it is None. ConfigError where it is no list of devices."""
    if devices is None:
        return []
    if isinstance(devices, (str, bytes)) or not isinstance(devices, Sequence):
        raise ConfigError(f"devices must be a list of devices, got {quoted(devices)}")
    if not devices:
        raise ConfigError("devices must name at least one device, got an empty list")
    for name, value in (("device", device), ("device_map", loading.get("device_map"))):
        if value is not None:
            raise ConfigError(f"pass {name} or devices, not both: got {quoted(value)} and {quoted(devices)}")
    try:
        return [resolve_device(one) for one in devices]
    except BackendError as error:
        raise BackendError(f"devices is {quoted(devices)}: {error}") from error
