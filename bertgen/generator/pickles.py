"""A `Generator` as bytes: the path that its model was loaded from while the model is unchanged, else the model itself.

Another process loads the files again, which is faster than sending weights. The bytes are the same in every run, so a
cache that hashes them, such as that of `datasets.map`, finds its entries. Requests in flight are not included.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..config import GenerationConfig
from ..errors import CheckpointError
from ..hub import local_directory
from ..model import EncoderDecoderModel
from ..model.weights_digest import fingerprint, weights_digest
from ..tokenizer import Tokenizer


@dataclass(frozen=True)
class Origin:
    """Where a model was loaded from, and a fingerprint of it after loading.

    Attributes:
        path: directory, or hub id.
        options: of the Generator: `dtype`, and those of the hub.
        seen: the fingerprint. The names of the class and of its attributes are part of the bytes.
    """

    path: str
    options: dict[str, Any]
    seen: tuple[Any, ...]

    @classmethod
    def of(cls, model: EncoderDecoderModel, path: Any, **options: Any) -> Origin:
        """The origin of a model that was just loaded; a directory becomes absolute, for other processes."""
        directory = local_directory(path)
        return cls(str(path) if directory is None else str(directory.resolve()), options, fingerprint(model))

    def matches(self, model: EncoderDecoderModel) -> bool:
        """Whether the model is unchanged. Versions of the parameters are compared, not their values."""
        return fingerprint(model) == self.seen


def from_origin(
    cls: Any, origin: Origin, digest: str, generation: dict[str, Any], tokenizer: Tokenizer, options: dict[str, Any]
) -> Any:
    """A Generator that loads its model again; CheckpointError where the path has other weights now."""
    generator = cls(origin.path, tokenizer, **origin.options, **options)
    if weights_digest(generator.model) != digest:
        raise CheckpointError(f"{origin.path} holds other weights than those of the Generator that was pickled")
    generator.model.generation_config = GenerationConfig.from_dict(generation)
    return generator


def from_model(cls: Any, model: EncoderDecoderModel, tokenizer: Tokenizer, options: dict[str, Any]) -> Any:
    """A Generator of this model."""
    return cls(model, tokenizer, **options)


def reduce_generator(generator: Any) -> tuple[Any, ...]:
    """The function and arguments from which `pickle` makes the Generator again."""
    cls, model, tokenizer = type(generator), generator.model, generator.tokenizer
    options, origin = generator.options, generator.origin
    if origin is None or not origin.matches(model):
        return from_model, (cls, model, tokenizer, options)
    if "devices" not in options:
        options = {**options, "device": str(model.device)}
    generation = model.generation_config.to_dict()
    return from_origin, (cls, replace(origin, seen=()), weights_digest(model), generation, tokenizer, options)
