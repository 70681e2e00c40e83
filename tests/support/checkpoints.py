"""A tiny trained checkpoint. Its outputs have margins that rounding does not change, unlike those of random weights."""

import random
from pathlib import Path

import torch

from bertgen import (
    BertGenerationConfig,
    BertGenerationTokenizer,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    GenerationConfig,
)
from bertgen.trainer.data import train_vocabulary

# The task is word-by-word translation. Some words have a second translation, which beam search finds.
FIRST = dict(
    zip(
        "one two three four five six seven eight nine ten red blue green white black dog".split(),
        "eins zwei drei vier fünf sechs sieben acht neun zehn rot blau grün weiß schwarz hund".split(),
        strict=True,
    )
)
SECOND = {"white": ("hell", 0.4), "black": ("dunkel", 0.3), "dog": ("köter", 0.2), "green": ("giftig", 0.1)}
LONGEST = 6  # words of a sentence
POSITIONS, MAX_LENGTH = 48, 40


def sentence(r: random.Random) -> str:
    """A random source."""
    return " ".join(r.choices(list(FIRST), k=r.randint(1, LONGEST)))


def sentences(seed: int, count: int) -> list[str]:
    r = random.Random(seed)
    return [sentence(r) for _ in range(count)]


def translation(source: str, r: random.Random | None = None) -> str:
    """The most probable target of a source, or a random one if `r` is passed."""
    target = []
    for word in source.split():
        other, probability = SECOND.get(word, ("", 0.0))
        target.append(other if r and r.random() < probability else FIRST[word])
    return " ".join(target)


def make_tiny_checkpoint(folder: Path, steps: int = 90) -> Path:
    """Train a model of 2 + 2 layers on the task and save it with its tokenizer in `folder`; this takes some seconds.

    Its best output is the `translation` of nearly every sentence.
    """
    r = random.Random(1)
    pairs = [(source, translation(source, r)) for source in (sentence(r) for _ in range(24 * steps))]
    folder.mkdir(parents=True, exist_ok=True)
    train_vocabulary(pairs, 64, folder / "spiece.model")
    tokenizer = BertGenerationTokenizer(folder / "spiece.model")
    tokenizer.save_pretrained(folder)
    special = dict(pad_token_id=0, bos_token_id=2, eos_token_id=1)
    half = dict(
        vocab_size=len(tokenizer),
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=POSITIONS,
        initializer_range=0.08,  # needs a tenth of the steps of 0.02
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **special,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = EncoderDecoderModel(
            EncoderDecoderConfig(
                encoder=BertGenerationConfig(**half),
                decoder=BertGenerationConfig(**half, is_decoder=True, add_cross_attention=True),
                decoder_start_token_id=2,
                **special,
            )
        )
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, steps)
    for step in range(steps):
        sources, targets = zip(*pairs[24 * step : 24 * (step + 1)], strict=True)
        ids, mask = padded(tokenizer.encode_batch(sources), 0)
        labels, _ = padded([[*row, 1] for row in tokenizer.encode_batch(targets)], -100)
        optimizer.zero_grad()
        model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.generation_config = GenerationConfig(max_length=MAX_LENGTH, decoder_start_token_id=2, **special)
    model.save_pretrained(folder)
    return folder


def padded(rows: list[list[int]], fill: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ids as a matrix, padded on the right, and its mask."""
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows])
    return ids, torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
