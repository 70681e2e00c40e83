"""Sentence pairs: from a TSV file to batches of tensors."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ..config import EncoderDecoderConfig
from ..errors import ConfigError, InputError
from ..files.atomic import atomic_write
from ..tokenizer import Tokenizer
from ..tokenizer.special_tokens import source_special_tokens, target_end_token

IGNORED = -100


def train_vocabulary(pairs: Sequence[tuple[str, str]], vocab_size: int, path: Path) -> None:
    """Train one sentencepiece unigram vocabulary for both sides and write the model file to `path`.

    Ids 0 to 4 are <pad>, </s>, <s>, <unk> and <::::>, the special tokens of BertGenerationTokenizer.

    Raises:
        ConfigError: the text is too small or has too many characters for `vocab_size` pieces.
    """
    import sentencepiece

    try:
        with atomic_write(path) as file:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=(text for pair in pairs for text in pair),
                model_writer=file,
                model_type="unigram",
                vocab_size=vocab_size,
                character_coverage=1.0,
                pad_id=0,
                eos_id=1,
                bos_id=2,
                unk_id=3,
                pad_piece="<pad>",
                eos_piece="</s>",
                bos_piece="<s>",
                unk_piece="<unk>",
                user_defined_symbols=["<::::>"],
                input_sentence_size=2_000_000,
                num_threads=1,  # the pieces' scores depend on the number of threads in their last digits
                minloglevel=2,
            )
    except RuntimeError as error:
        raise ConfigError(f"vocab_size={vocab_size}: {str(error).split('] ')[-1].strip()}") from error


@dataclass(frozen=True)
class Ragged:
    """Rows of different length in one array (lists take ten times the memory): row i ends where row i + 1 starts."""

    values: np.ndarray  # int32 [total]
    offsets: np.ndarray  # int64 [rows + 1]

    @classmethod
    def from_rows(cls, rows: Sequence[Sequence[int]]) -> Ragged:
        """Join the rows."""
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        values = np.fromiter((token for row in rows for token in row), np.int32, int(lengths.sum()))
        return cls(values, np.concatenate(([0], lengths.cumsum())))

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Length of each row, int64 [rows]."""
        return np.diff(self.offsets)

    def pad(self, rows: np.ndarray, fill: int) -> np.ndarray:
        """Return these rows as one int64 matrix, padded on the right with `fill`."""
        lengths = self.lengths[rows]
        columns = np.arange(lengths.max())
        inside = columns < lengths[:, None]
        matrix = np.full(inside.shape, fill, np.int64)
        matrix[inside] = self.values[(self.offsets[rows][:, None] + columns)[inside]]
        return matrix


class Batch(NamedTuple):
    """Tensors of one forward pass; B pairs, S and T the longest source and target."""

    input_ids: torch.Tensor  # int64 [B, S]
    attention_mask: torch.Tensor  # int64 [B, S]
    labels: torch.Tensor  # int64 [B, T], -100 in the padding


class Corpus:
    """Encoded pairs: sources as the model reads them, targets ending in its end token.

    Args:
        pairs: sources and targets; those with a side above `max_length` pieces are left out and counted in `skipped`.
        config: of the model; None is one whose sources have no special tokens.
        name: of the file of the pairs, a line each, for messages.

    Raises:
        InputError: a side has no tokens, as one of nothing but zero-width characters; all pairs are too long.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[str, str]],
        tokenizer: Tokenizer,
        max_length: int,
        config: EncoderDecoderConfig | None = None,
        name: str = "pairs",
    ) -> None:
        before, after = ([], []) if config is None else source_special_tokens(config, tokenizer)
        end = target_end_token(config, tokenizer)
        sources, targets = (tokenizer.encode_batch(side, add_special_tokens=False) for side in zip(*pairs, strict=True))
        for number, sides in enumerate(zip(sources, targets, strict=True), start=1):
            if not all(sides):
                which = "target" if sides[0] else "source"
                raise InputError(f"{name}, line {number}: the {which} has no tokens: the tokenizer drops all of it")
        sources = [[*before, *row, *after] for row in sources]
        targets = [[*row, end] for row in targets]
        kept = [i for i in range(len(pairs)) if len(sources[i]) <= max_length and len(targets[i]) <= max_length]
        if not kept:
            raise InputError(f"{name}: all {len(pairs)} pairs are longer than max_length={max_length} pieces")
        self.pairs = [pairs[i] for i in kept]
        self.skipped = len(pairs) - len(kept)
        self.pad_id = tokenizer.pad_token_id
        self.sources = Ragged.from_rows([sources[i] for i in kept])
        self.targets = Ragged.from_rows([targets[i] for i in kept])

    def __len__(self) -> int:
        return len(self.pairs)

    def plan(self, batch_tokens: int, shuffle: str | None = None) -> list[np.ndarray]:
        """Cut the corpus into batches of pairs of like length.

        Args:
            batch_tokens: bound of pairs x (longest source + longest target); a longer pair is a batch of its own.
            shuffle: seed of the order, of the batches and of pairs of equal length; None: short to long.

        Returns:
            Row numbers of each batch: a pure function of the arguments and the corpus.
        """
        generator = np.random.default_rng(list((shuffle or "").encode()))
        order = generator.permutation(len(self)) if shuffle else np.arange(len(self))
        source, target = self.sources.lengths, self.targets.lengths
        order = order[np.lexsort((source[order], target[order]))]
        batches, start, longest = [], 0, 0
        for end, (s, t) in enumerate(zip(source[order].tolist(), target[order].tolist(), strict=True)):
            # Targets ascend, so t is the longest target so far.
            longest = max(longest, s)
            if end > start and (end + 1 - start) * (longest + t) > batch_tokens:
                batches.append(order[start:end])
                start, longest = end, s
        batches.append(order[start:])
        if shuffle:
            batches = [batches[i] for i in generator.permutation(len(batches))]
        return batches

    def target_tokens(self, rows: np.ndarray) -> int:
        """Count the labels of a batch."""
        return int(self.targets.lengths[rows].sum())

    def source_tokens(self, rows: np.ndarray) -> int:
        """Count the source pieces of a batch."""
        return int(self.sources.lengths[rows].sum())

    def batch(self, rows: np.ndarray, device: torch.device) -> Batch:
        """Make the tensors of a batch."""
        sources, labels = self.sources.pad(rows, self.pad_id), self.targets.pad(rows, IGNORED)
        mask = np.arange(sources.shape[1]) < self.sources.lengths[rows][:, None]
        return Batch(*(torch.from_numpy(array).to(device) for array in (sources, mask.astype(np.int64), labels)))


def references(pairs: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    """Group the targets of equal sources, in the order of first appearance."""
    grouped: dict[str, list[str]] = {}
    for source, target in pairs:
        grouped.setdefault(source, []).append(target)
    return grouped


def dropout_seed(seed: int, epoch: int, batch: int) -> int:
    """Return the seed of one batch's dropout, so that neither a resumption nor the number of processes changes it."""
    return random.Random(f"{seed}/{epoch}/{batch}").getrandbits(63)


def shares(batches: int, per_update: int) -> Iterator[range]:
    """Yield the batch numbers of each update of an epoch; the last one may be smaller."""
    for start in range(0, batches, per_update):
        yield range(start, min(start + per_update, batches))
