"""Text in, text out: `Generator`.

Texts are encoded together, sorted by length, cut into batches by tokens, generated, decoded, and answered under the
index they came with.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from . import search
from .config import GenerationConfig
from .errors import BackendError, BertgenError, ConfigError, InputError
from .framing import source_frame
from .model import EncoderDecoderModel
from .outputs import GenerateOutput
from .pretrained import resolve_device
from .tokenizer import AutoTokenizer, Tokenizer

# By kind of device: tokens of a batch by default, and bytes its cache may take should every output be of full length.
BATCH_TOKENS = {"cpu": 16384, "cuda": 65536}
CACHE_BYTES = {"cpu": 2 << 30, "cuda": 16 << 30}
LOOKAHEAD = 4096  # texts that `stream` reads before it answers the first
LOOKAHEAD_CHARACTERS = 1 << 24  # and no more than this much of them
SCORED_POSITIONS = 4096  # positions whose logits over the whole vocabulary are held at a time

# What the model is asked to return, whatever its configuration says.
RETURNED = dict(
    return_dict_in_generate=True,
    output_scores=False,
    output_logits=False,
    output_attentions=False,
    output_hidden_states=False,
)

HUB_OPTIONS = frozenset(("revision", "cache_dir", "token", "local_files_only"))


@dataclass(frozen=True)
class Output:
    """What was generated for one text.

    Attributes:
        index: which of the given texts it answers.
        text: the generated text, without special tokens.
        token_ids: as generated: no start token, no padding; the end token comes last unless the length ran out.
        score: log-probability / length ** length_penalty, length and probability including the end token. Beams have
            it always, as transformers' `sequences_scores`; greedy and sampled outputs where `scores=True`, and then
            the probability is the model's own, whatever the penalties and limits they were chosen under.
        alternatives: under `num_return_sequences` the other outputs, best first under beams.
        truncated: the text was longer than the limit and its end was not read.
        error: why the text could not be used, where `stream(return_errors=True)` met such a one.
        input_tokens: of the text, special tokens included, as the model read them.
    """

    index: int
    text: str
    token_ids: tuple[int, ...] = ()
    score: float | None = None
    alternatives: tuple[Output, ...] = ()
    truncated: bool = False
    error: BertgenError | None = None
    input_tokens: int = 0


@dataclass(frozen=True)
class _Source:
    """A text that was encoded."""

    index: int
    ids: list[int]
    truncated: bool


@dataclass(frozen=True)
class _Call:
    """The checked options of one call: those for `model.generate`, all of them settled, and the Generator's own."""

    options: dict[str, Any]
    settled: GenerationConfig
    seed: int | None
    scores: bool
    truncation: bool
    clean_up: bool | None
    max_batch_size: int | None
    return_errors: bool

    @property
    def width(self) -> int:
        """Rows a source takes in the decoder."""
        return max(self.settled.num_beams, self.settled.num_return_sequences)

    def cost(self, length: int) -> int:
        """Tokens a source of `length` tokens takes in a batch: its own and, for each row, those of a likely output."""
        return length + self.width * min(self.settled.max_length - 1, 2 * length + 16)


class Generator:
    """Generates texts from texts with one model.

    Args:
        model: an EncoderDecoderModel (put into evaluation mode), or the path or hub id of one, or "demo".
        tokenizer: a tokenizer or where to load it from; by default it is loaded from where the model is.
        device: "cpu", "cuda", "cuda:1" or a CUDA index; None leaves a model where it is and loads one to the CPU.
        dtype: of the weights. None takes the checkpoint's, but float32 on a CPU, where 16 bits are slower; "auto"
            takes the checkpoint's wherever it runs.
        max_batch_tokens: tokens of a batch, padding included, for each source and each beam of its likely output. By
            default 16384 on a CPU and 65536 on a GPU. A batch that does not fit into memory is halved.
        max_input_length: longest text in tokens; by default what the encoder has positions for.
        truncation: cut longer texts instead of refusing them.
        add_special_tokens: put the tokenizer's special tokens around a text; None does where the encoder is a BERT or
            RoBERTa, and not where it is a bert-generation encoder (its models were trained without).
        hub: `revision`, `cache_dir`, `token`, `local_files_only` for a model that is loaded.

    Raises:
        CheckpointError, ConfigError, BackendError: as `EncoderDecoderModel.from_pretrained`.
        ConfigError: no tokenizer, one of another vocabulary, or an option outside its limits.
    """

    def __init__(
        self,
        model: EncoderDecoderModel | str | os.PathLike,
        tokenizer: Tokenizer | str | os.PathLike | None = None,
        *,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | str | None = None,
        max_batch_tokens: int | None = None,
        max_input_length: int | None = None,
        truncation: bool = False,
        add_special_tokens: bool | None = None,
        **hub: Any,
    ):
        if unknown := hub.keys() - HUB_OPTIONS:
            raise ConfigError(f"Generator has no option {', '.join(map(repr, sorted(unknown)))}")
        if isinstance(model, EncoderDecoderModel):
            if tokenizer is None or hub or isinstance(dtype, str):
                raise ConfigError("a model object needs a tokenizer, a torch.dtype or none, and no options of the hub")
            self.model = model.to(device=None if device is None else resolve_device(device), dtype=dtype).eval()
        else:
            if tokenizer is None:
                tokenizer = AutoTokenizer.from_pretrained(model, **hub)
            self.model = EncoderDecoderModel.from_pretrained(model, device=device, dtype=dtype, **hub)
            if dtype is None and self.model.device.type == "cpu":
                self.model.float()
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
        self.max_input_length = positions if max_input_length is None else _count("max_input_length", max_input_length)
        if self.max_input_length > positions:
            raise ConfigError(f"max_input_length {max_input_length} is more than the encoder's {positions} positions")
        if max_batch_tokens is None:
            max_batch_tokens = BATCH_TOKENS["cuda" if self.model.device.type == "cuda" else "cpu"]
        self.max_batch_tokens = _count("max_batch_tokens", max_batch_tokens)
        self.truncation = truncation
        self.frame = source_frame(config, tokenizer) if add_special_tokens is None else ([], [])
        if add_special_tokens:
            self.frame = tokenizer.frame(pair=False)[::2]
        if sum(map(len, self.frame)) >= self.max_input_length:
            raise ConfigError(f"max_input_length {max_input_length} leaves no room between the special tokens")

    def generate(
        self,
        texts: Sequence[str],
        *,
        seed: int | None = None,
        scores: bool = False,
        truncation: bool | None = None,
        clean_up_tokenization_spaces: bool | None = None,
        max_batch_size: int | None = None,
        **options: Any,
    ) -> list[Output]:
        """Generate for all texts; the outputs come in the order of the texts.

        A text without tokens (nothing, or only spaces) is answered by an empty output, without asking the model.
        Sampling with a seed gives the same outputs for the same texts, options, device and batch limits, and leaves
        torch's own random state alone. Whether another text stands in the batch does change the draws.

        Args:
            texts: all are checked before the first is generated.
            seed: of sampling; None draws from torch's default generator.
            scores: score greedy and sampled outputs too, which takes one more forward pass.
            truncation: as the constructor's, for this call.
            clean_up_tokenization_spaces: take spaces before punctuation out; None as the tokenizer is set.
            max_batch_size: texts in a batch at most, besides the limit of tokens.
            options: `generation_config` or options of `GenerationConfig`, over the model's own. Where none of them
                sets a maximum length, outputs end with the decoder's positions. `max_time` counts for each batch.

        Raises:
            InputError: a text is no str, no valid Unicode or too long: its index, the value and the limit.
            ConfigError, UnsupportedError: bad options.
            BackendError: a single text does not fit into memory.
        """
        texts = _texts(texts)
        call = self._call(seed, scores, truncation, clean_up_tokenization_spaces, max_batch_size, False, options)
        answers = dict(self._answers([list(texts)], call))
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
        """Generate for the texts of any iterable, however long; yields (index, output) as each batch is done.

        Arguments and errors as `generate`, and:
            return_errors: answer a text that cannot be used, or that does not fit into memory by itself, by an empty
                output with its `error`, instead of raising.
            lookahead: texts to read before the first answer; they are sorted by length into batches, and all of them
                are answered before the next is read.
            first: number of the first text, from which the indices of outputs and messages, and seeds, count.
        """
        texts, lookahead = _texts(texts), _count("lookahead", lookahead)
        call = self._call(
            seed, scores, truncation, clean_up_tokenization_spaces, max_batch_size, return_errors, options
        )
        return self._answers(_windows(texts, lookahead), call, first)

    def _call(
        self,
        seed: int | None,
        scores: bool,
        truncation: bool | None,
        clean_up: bool | None,
        max_batch_size: int | None,
        return_errors: bool,
        options: dict[str, Any],
    ) -> _Call:
        for name in RETURNED:
            if name in options:
                raise ConfigError(f"{name} is for model.generate; a Generator gives Outputs, with scores=True scored")
        for name in ("logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn", "streamer"):
            if name in options:
                raise ConfigError(f"{name} is for model.generate; a Generator chooses which texts make up a batch")
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise ConfigError(f"seed must be an integer, got {seed!r}")
        levels = GenerationConfig.of_call(
            {k: v for k, v in options.items() if k != "generation_config"},
            options.get("generation_config"),
            self.model.generation_config,
        )
        if levels.max_length is None and levels.max_new_tokens is None:
            options = {**options, "max_length": self.model.config.decoder.max_tokens}
            levels.max_length = options["max_length"]
        return _Call(
            options={**options, **RETURNED, "use_cache": False, "tokenizer": self.tokenizer},
            settled=search.settle(levels),
            seed=seed,
            scores=scores,
            truncation=self.truncation if truncation is None else truncation,
            clean_up=clean_up,
            max_batch_size=None if max_batch_size is None else _count("max_batch_size", max_batch_size),
            return_errors=return_errors,
        )

    def _answers(self, windows: Iterable[list[str]], call: _Call, first: int = 0) -> Iterator[tuple[int, Output]]:
        for window in windows:
            sources = []
            for found in self._encode(window, first, call):
                if isinstance(found, Output):
                    yield found.index, found
                else:
                    sources.append(found)
            yield from self._batches(sources, call)
            first += len(window)

    def _encode(self, texts: list[str], first: int, call: _Call) -> list[_Source | Output]:
        """Encode texts, the first of which has the index `first`; what needs no model is answered here."""
        problems = [_problem(text) for text in texts]
        known = [text if problem is None else "" for text, problem in zip(texts, problems, strict=True)]
        rows = self.tokenizer.encode_batch(known, add_special_tokens=False)
        before, behind = self.frame
        limit, vocabulary = self.max_input_length - len(before) - len(behind), self.model.config.encoder.vocab_size
        beyond = len(self.tokenizer) > vocabulary  # added tokens without a row in the embedding
        found: list[_Source | Output] = []
        for index, (row, problem) in enumerate(zip(rows, problems, strict=True), first):
            length = len(row)
            if beyond and row and max(row) >= vocabulary:
                problem = f"the tokenizer gives id {max(row)}, the model has a vocabulary of {vocabulary}"
            if length > limit and not call.truncation:
                problem = f"{length} tokens, the limit is {limit} (truncation cuts longer texts)"
            if problem is not None:
                if not call.return_errors:
                    raise InputError(f"text {index}: {problem}")
                found.append(Output(index, "", error=InputError(problem)))
            else:
                framed = [*before, *row[:limit], *behind]
                found.append(_Source(index, framed, length > limit) if row else Output(index, ""))
        return found

    def _batches(self, sources: list[_Source], call: _Call) -> Iterator[tuple[int, Output]]:
        """Generate for the sources, longest first; a batch that does not fit into memory is halved."""
        sources = sorted(sources, key=lambda source: len(source.ids), reverse=True)
        limit, most, start = self.max_batch_tokens, self._most_sources(call), 0
        while start < len(sources):
            cost = call.cost(len(sources[start].ids))
            batch = sources[start : start + min(most, max(1, limit // cost))]
            outputs = self._attempt(batch, call)
            if outputs is not None:
                yield from ((output.index, output) for output in outputs)
                start += len(batch)
            elif len(batch) > 1:
                limit = cost * (len(batch) // 2)
            else:
                problem = (
                    f"out of memory on {self.model.device} with text {batch[0].index} alone: {len(batch[0].ids)} "
                    f"tokens, num_beams {call.settled.num_beams}, max_length {call.settled.max_length}"
                )
                if not call.return_errors:
                    raise BackendError(problem)
                yield batch[0].index, Output(batch[0].index, "", error=BackendError(problem))
                start += 1

    def _most_sources(self, call: _Call) -> int:
        """Sources of a batch whose cache fits into memory even if every output is as long as it may be."""
        config = self.model.config.decoder
        position = 2 * config.num_hidden_layers * config.hidden_size * self.model.dtype.itemsize
        room = CACHE_BYTES["cuda" if self.model.device.type == "cuda" else "cpu"]
        most = max(1, room // max(1, position * call.settled.max_length * call.width))
        return min(most, call.max_batch_size or most)

    def _attempt(self, batch: list[_Source], call: _Call) -> list[Output] | None:
        """Outputs of a batch; None where the memory does not suffice."""
        try:
            return self._generate(batch, call)
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
        # Here and not above: while an exception is handled its traceback keeps the tensors of the attempt alive.
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _generate(self, batch: list[_Source], call: _Call) -> list[Output]:
        ids, mask = self._padded([source.ids for source in batch])
        generator = None
        if call.seed is not None and call.settled.do_sample:
            # A seed of the batch's own, so that its draws do not depend on what was generated before.
            seed = random.Random(f"{call.seed}/{batch[0].index}").getrandbits(63)
            generator = torch.Generator(self.model.device).manual_seed(seed)
        found = self.model.generate(input_ids=ids, attention_mask=mask, generator=generator, **call.options)
        assert isinstance(found, GenerateOutput)
        rows = _cut(found, call.settled)
        scores = [None] * len(rows) if found.sequences_scores is None else found.sequences_scores.tolist()
        if call.scores and found.sequences_scores is None:
            scores = self._scores(ids, mask, rows, call.settled)
        texts = self.tokenizer.batch_decode(rows, skip_special_tokens=True, clean_up_tokenization_spaces=call.clean_up)
        count, outputs = call.settled.num_return_sequences, []
        for place, source in enumerate(batch):
            candidates = [
                Output(source.index, texts[row], tuple(rows[row]), scores[row], truncated=source.truncated)
                for row in range(place * count, (place + 1) * count)
            ]
            best = candidates[0]
            outputs.append(replace(best, alternatives=tuple(candidates[1:]), input_tokens=len(source.ids)))
        return outputs

    def _padded(self, rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows as ids int64 [B, L], filled up on the right, and their mask."""
        longest, fill, device = max(map(len, rows)), self.tokenizer.pad_token_id or 0, self.model.device
        ids = torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows], device=device)
        lengths = torch.tensor([[len(row)] for row in rows], device=device)
        return ids, torch.arange(longest, device=device) < lengths

    @torch.no_grad()
    def _scores(
        self, ids: torch.Tensor, mask: torch.Tensor, rows: list[list[int]], settled: GenerationConfig
    ) -> list[float]:
        """The model's log-probability / length ** length_penalty of each row; those of a source are adjacent."""
        scores: list[float] = []
        step = max(1, SCORED_POSITIONS // max(map(len, rows)))
        for start in range(0, len(rows), step):
            targets, held = self._padded(rows[start : start + step])
            sources = torch.arange(start, start + len(targets), device=ids.device) * len(ids) // len(rows)
            inputs = targets.roll(1, 1)
            inputs[:, 0] = settled.decoder_start_token_id
            # Inputs and not labels: a pad id that was drawn has been attended to, padding behind the end is not.
            found = self.model(ids[sources], mask[sources], decoder_input_ids=inputs, use_cache=False)
            gained = found.logits.float().log_softmax(-1).gather(2, targets[:, :, None]).squeeze(2)
            total = gained.masked_fill(~held, 0.0).sum(1, dtype=torch.float64)
            scores += (total / held.sum(1) ** settled.length_penalty).tolist()
        return scores


def _count(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} must be an integer of at least 1, got {value!r}")
    return value


def _texts(texts: Any) -> Any:
    if isinstance(texts, (str, bytes)) or not isinstance(texts, Iterable):
        raise InputError(f"expected a list of texts, got {type(texts).__name__}")
    return texts


def _problem(text: Any) -> str | None:
    """What is wrong with a text as such; None where it can be encoded."""
    if not isinstance(text, str):
        return f"must be a str, got {type(text).__name__}"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"no valid Unicode: lone surrogate U+{ord(text[error.start]):04X} at position {error.start}"
    return None


def _windows(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    """Cut an iterable into lists of `size` texts, or of fewer where they are very long."""
    window: list[str] = []
    characters = 0
    for text in texts:
        window.append(text)
        characters += len(text) if isinstance(text, str) else 0
        if len(window) >= size or characters >= LOOKAHEAD_CHARACTERS:
            yield window
            window, characters = [], 0
    if window:
        yield window


def _cut(found: GenerateOutput, settled: GenerationConfig) -> list[list[int]]:
    """The rows without their start token and without what fills them up behind their last token."""
    rows, ends = found.sequences[:, 1:].tolist(), settled.end_tokens
    if found.beam_indices is not None:
        lengths = (found.beam_indices >= 0).sum(1).tolist()
        return [row[:length] for row, length in zip(rows, lengths, strict=True)]
    cut = []
    for row in rows:
        length = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
        if settled.stop_strings is not None and length == len(row):  # a text that stopped has no end token
            length -= next((i for i, token in enumerate(reversed(row)) if token != settled.pad_token_id), 0)
        cut.append(row[:length])
    return cut


def _is_out_of_memory(error: RuntimeError) -> bool:
    signs = ("can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in signs)
