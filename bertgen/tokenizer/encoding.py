"""What a tokenizer returns, and how rows of ids become it: pairs, truncation, padding, tensors."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..errors import ConfigError, InputError

TRUNCATIONS = ("longest_first", "only_first", "only_second", "do_not_truncate")


PADDINGS = ("longest", "max_length", "do_not_pad")


SIDES = ("right", "left")


class BatchEncoding(dict):
    """What a tokenizer returns: `input_ids`, `attention_mask` and so on, as keys and as attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"this encoding has no {name!r}; it has {', '.join(self)}") from None

    def to(self, device: Any, non_blocking: bool = False) -> BatchEncoding:
        """Move the tensors to `device`, in place, and return the encoding."""
        self.update((k, v.to(device, non_blocking=non_blocking)) for k, v in self.items() if hasattr(v, "to"))
        return self


class Plan(NamedTuple):
    """How long rows may be and become: checked options of one call."""

    padding: str
    truncation: str
    limit: int | None
    multiple: int | None


def checked_positive(name: str, value: Any) -> int:
    """The value as an int of at least 1, or ConfigError."""
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole or value < 1:
        raise ConfigError(f"{name} must be an integer of at least 1, got {value!r}")
    return int(value)


def checked_choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """The one of `choices` that the value is, or ConfigError."""
    for choice in choices:
        if value == choice:  # true for the enumerations of transformers, too
            return choice
    raise ConfigError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def pairs_of(text: Any, text_pair: Any) -> tuple[list[Any], list[Any]]:
    """Texts and their second texts (None where there is none) of a call's arguments."""
    if isinstance(text, str):
        if text_pair is not None and not isinstance(text_pair, str):
            raise InputError(f"text is one str, so text_pair must be one too, got {type(text_pair).__name__}")
        return [text], [text_pair or None]  # as transformers: an empty second text is none
    if not isinstance(text, (list, tuple)):
        raise InputError(f"text must be a str or a list of str, got {type(text).__name__}")
    if not text:
        raise InputError("the batch holds no text")
    if text_pair is not None:
        if not isinstance(text_pair, (list, tuple)) or len(text_pair) != len(text):
            raise InputError(f"text is a list of {len(text)}, so text_pair must be one of that length")
        for index, second in enumerate(text_pair):
            if not isinstance(second, str):
                raise InputError(f"text_pair {index} must be a str, got {type(second).__name__}")
        return list(text), list(text_pair)
    firsts, seconds = [], []
    for index, item in enumerate(text):
        if isinstance(item, (list, tuple)):
            if len(item) not in (1, 2) or not all(isinstance(one, str) for one in item):
                raise InputError(f"text {index} must be a str or a pair of str, got {item!r}")
            firsts.append(item[0])
            seconds.append(item[1] if len(item) == 2 else None)
        else:
            firsts.append(item)
            seconds.append(None)
    return firsts, seconds


def truncated(
    row: list[int], second: list[int] | None, limit: int, strategy: str, side: str, odd_to_longer: bool = False
) -> tuple[list[int], list[int] | None]:
    """Shorten a row and its second row (if any) to `limit` tokens together.

    Where both are cut to an odd limit the first keeps one token more, or with `odd_to_longer` the one that was longer,
    the second where they were equal.
    """

    def keep(ids: list[int], drop: int) -> list[int]:
        return ids[: max(len(ids) - drop, 0)] if side == "right" else ids[drop:]

    excess = len(row) + len(second or ()) - limit
    if strategy == "only_first" or (strategy == "longest_first" and second is None):
        return keep(row, excess), second
    if second is None or strategy == "only_second":
        return row, second and keep(second, excess)
    # First level the two, then take from both in turn.
    level = min(abs(len(row) - len(second)), excess)
    half = (excess - level + (odd_to_longer and len(row) <= len(second))) // 2
    drop = level + half if len(row) > len(second) else half
    return keep(row, drop), keep(second, excess - drop)


def tensor_kind(value: Any) -> str | None:
    """Return "pt" or "np" for tensors and arrays, or lists of them; None for anything else."""
    one = value[0] if isinstance(value, (list, tuple)) and value else value
    return {"torch": "pt", "numpy": "np"}.get(type(one).__module__.split(".")[0])


def to_lists(value: Any) -> Any:
    """Turn tensors and arrays, or a list of them, into lists of numbers."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, (list, tuple)) and value and hasattr(value[0], "tolist"):
        return [to_lists(one) for one in value]
    return value


def as_encoding(columns: dict[str, Any], return_tensors: str | None, unwrap: bool) -> BatchEncoding:
    """Turn padded rows into what the caller asked for."""
    if unwrap:
        return BatchEncoding({key: rows[0] for key, rows in columns.items()})
    if return_tensors is None:
        return BatchEncoding(columns)
    if return_tensors not in ("pt", "np"):
        raise ConfigError(f"return_tensors must be 'pt', 'np' or None, got {return_tensors!r}")
    import numpy

    tensors: dict[str, Any] = {}
    for key, rows in columns.items():
        lengths = {len(row) for row in rows if isinstance(row, list)} if isinstance(rows, list) else set()
        if len(lengths) > 1:
            raise InputError(
                f"rows of {key} have {min(lengths)} to {max(lengths)} tokens, so they form no tensor; use padding=True "
                "(and truncation=True with max_length)"
            )
        array = numpy.array(rows)
        tensors[key] = array if array.dtype.kind == "f" and array.size else array.astype(numpy.int64, copy=False)
    if return_tensors == "pt":
        import torch

        tensors = {key: torch.from_numpy(array) for key, array in tensors.items()}
    return BatchEncoding(tensors)


def cleaned_up(text: str) -> str:
    """Take the spaces before English punctuation and contractions out."""
    for spaced in (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're"):
        text = text.replace(spaced, spaced.strip())
    return text
