"""Streamers receive the tokens of `generate(streamer=...)` as they are chosen and pass on text as soon as it is final.

A streamer is any object with `put(ids)` and `end()`: `put` receives the prefix (int64 [R, P]) and then the tokens of
each step (int64 [R]), on the CPU.
"""

from __future__ import annotations

import sys
import unicodedata
from queue import Queue
from typing import Any

import torch

from ..config.validators import check_flag, check_number
from ..errors import ConfigError, InputError, quoted

# First and last code points of the blocks of Chinese characters, which are written without spaces between words.
IDEOGRAPHS = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


class TextStreamer:
    """Writes the text of one output to stdout as soon as it is final.

    Letters, digits and spaces are written with the token that they come in. Other symbols wait for the next space or
    the end of the line, because later tokens may complete them.

    Args:
        tokenizer: decodes the tokens.
        skip_prompt: leave out the first `put`, the tokens that the output begins with.
        decode: arguments of `tokenizer.decode`, such as skip_special_tokens.
    """

    def __init__(self, tokenizer: Any, skip_prompt: bool = False, **decode: Any):
        if isinstance(tokenizer, bytes) or not callable(getattr(tokenizer, "decode", None)):
            raise ConfigError(f"tokenizer must have a method decode, got {quoted(tokenizer)}")
        self.tokenizer, self.skip_prompt = tokenizer, check_flag(skip_prompt, "skip_prompt")
        self.decode_kwargs = decode
        self._reset()

    def _reset(self) -> None:
        self.tokens: list[int] = []  # tokens of the current line
        self.written = 0  # characters of their text that are written
        self.at_prompt = True

    def put(self, value: torch.Tensor) -> None:
        """Add tokens, int64 [1, P] or [1]; InputError for more than one output, or a value that is no tensor."""
        if not isinstance(value, torch.Tensor):
            raise InputError(f"value must be a tensor of tokens, got {quoted(value)}")
        if value.dim() > 1 and value.shape[0] > 1:
            raise InputError(f"a {type(self).__name__} streams one output, got {value.shape[0]}")
        at_prompt, self.at_prompt = self.at_prompt, False
        if at_prompt and self.skip_prompt:
            return
        self.tokens += value.flatten().tolist()
        text = self._text()
        is_final = text.endswith("\n") or _is_ideograph(text[-1:]) or all(map(_is_plain, text[self.written :]))
        end = len(text) if is_final else text.rfind(" ") + 1
        final, self.written = text[self.written : end], max(self.written, end)
        if text.endswith("\n"):
            # The last token stays: after it, decoding keeps the space that the next line begins with.
            self.tokens = self.tokens[-1:]
            self.written = len(self._text())
        self.on_finalized_text(final)

    def end(self) -> None:
        """Write the rest of the text and reset for the next output."""
        rest = self._text()[self.written :]
        self._reset()
        self.on_finalized_text(rest, stream_end=True)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Write final text to stdout; override it to send the text elsewhere."""
        sys.stdout.write(text + "\n" * stream_end)
        sys.stdout.flush()

    def _text(self) -> str:
        return self.tokenizer.decode(self.tokens, **self.decode_kwargs) if self.tokens else ""


class TextIteratorStreamer(TextStreamer):
    """Iterate over the text of one output while another thread generates it.

    Args:
        tokenizer, skip_prompt, decode: as `TextStreamer`'s.
        timeout: seconds to wait for text before `queue.Empty` is raised; None waits without limit.
    """

    def __init__(self, tokenizer: Any, skip_prompt: bool = False, timeout: float | None = None, **decode: Any):
        super().__init__(tokenizer, skip_prompt, **decode)
        self.timeout = None if timeout is None else check_number(0.0, float("inf"), timeout, "timeout")
        self.text_queue: Queue[str | None] = Queue()  # None after the last text

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.text_queue.put(text)
        if stream_end:
            self.text_queue.put(None)

    def __iter__(self) -> TextIteratorStreamer:
        return self

    def __next__(self) -> str:
        text = self.text_queue.get(timeout=self.timeout)
        if text is None:
            raise StopIteration
        return text


def _is_plain(letter: str) -> bool:
    """Whether later tokens leave it as it is: white space, a letter or mark, or a digit."""
    return letter.isspace() or unicodedata.category(letter)[0] in "LMN"


def _is_ideograph(letter: str) -> bool:
    return bool(letter) and any(first <= ord(letter) <= last for first, last in IDEOGRAPHS)
