"""Fixtures of the tokenizer tests."""

from tests.support.fast_tokenizers import both, fresh_fast, kind, kinds  # noqa: F401
from tests.support.sentencepiece_tokenizers import exact_vocab, fresh, ours, theirs, vocab  # noqa: F401
from tests.support.tokenizer_pairs import demo_pair, fast_pair  # noqa: F401
