"""AutoTokenizer: loads the class of tokenizer that a checkpoint names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

from ..arguments import path_aliases
from ..errors import UnsupportedError
from ..hub import HUB_OPTIONS, as_path, resolve_file, split_hub_options
from .base import Tokenizer
from .bert import BertTokenizer
from .bert_generation import BertGenerationTokenizer
from .fast import TOKENIZER_FILE, FastTokenizer, model_in, parts_of
from .files import CONFIG_FILE, read_optional
from .roberta import RobertaTokenizer


class AutoTokenizer:
    """Loads the class of tokenizer that a checkpoint names."""

    # Class name in configuration files (without "Fast" at its end) -> class.
    CLASSES: ClassVar[dict[str, type[Tokenizer]]] = {
        kind.__name__: kind for kind in (BertGenerationTokenizer, BertTokenizer, RobertaTokenizer)
    }
    # Model type of the encoder -> class name, for files without one.
    CLASS_OF_MODEL: ClassVar = {
        "bert-generation": "BertGenerationTokenizer",
        "bert": "BertTokenizer",
        "roberta": "RobertaTokenizer",
    }
    # Class names of transformers 5 and 4 for a tokenizer with a tokenizer.json only.
    NO_CLASS: ClassVar = ("TokenizersBackend", "PreTrainedTokenizerFast")

    @classmethod
    @path_aliases
    def from_pretrained(cls, path_or_id: str | os.PathLike, **options: Any) -> Tokenizer:
        """Load the tokenizer of a directory or hub id; options as `Tokenizer.from_pretrained`, or the model's `config`.

        The class is named by `tokenizer_config.json`, else by `config.json`, else by the model type of the encoder. If
        there is no vocabulary for this class but for one other class, the other class is loaded.

        Raises:
            UnsupportedError: bertgen does not have the class (its name).
            CheckpointError, ConfigError: as `Tokenizer.from_pretrained`.
        """
        path, config = as_path(path_or_id), options.pop("config", None)
        if path.is_file():
            return cls._of_file(path).from_pretrained(path, **options)
        hub = split_hub_options({name: options[name] for name in (*HUB_OPTIONS, "use_auth_token") if name in options})[
            1
        ]
        name = cls._name(path_or_id, hub, config)
        if name in cls.NO_CLASS:
            return cls._from_pipeline(path_or_id, hub, options)
        if (kind := cls.CLASSES.get(name.removesuffix("Fast"))) is None:
            raise UnsupportedError(f"{path_or_id} has a tokenizer {name}; bertgen has {', '.join(cls.CLASSES)}")
        if not kind.has_vocabulary(path_or_id, hub):
            others = [other for other in cls.CLASSES.values() if other.has_vocabulary(path_or_id, hub)]
            kind = others[0] if len(others) == 1 else kind
        return kind.from_pretrained(path_or_id, **options)

    @classmethod
    def _of_file(cls, path: Path) -> type[Tokenizer]:
        if path.suffix == ".json":
            return BertTokenizer if model_in(path) == BertTokenizer.MODEL else RobertaTokenizer
        return BertTokenizer if path.suffix == ".txt" else BertGenerationTokenizer

    @classmethod
    def _name(cls, path_or_id: str | os.PathLike, hub: dict[str, Any], model_config: Any) -> str:
        """Name of the class of tokenizer."""
        saved = read_optional(path_or_id, CONFIG_FILE, hub)
        config = read_optional(path_or_id, "config.json", hub) if model_config is None else model_config.to_dict()
        half = config.get("encoder")
        model_type = (half if isinstance(half, dict) else config).get("model_type", "bert-generation")
        of_model = cls.CLASS_OF_MODEL.get(str(model_type), f"for models of type {model_type!r}")
        return str(saved.get("tokenizer_class") or config.get("tokenizer_class") or of_model)

    @classmethod
    def _from_pipeline(
        cls, path_or_id: str | os.PathLike, hub: dict[str, Any], options: dict[str, Any]
    ) -> FastTokenizer:
        """Load a tokenizer.json without a class name, if one of the classes does exactly the same."""
        path = resolve_file(path_or_id, TOKENIZER_FILE, hub)
        description = model_in(path)
        for kind in (BertTokenizer, RobertaTokenizer):
            if description == kind.MODEL:
                parts = parts_of(path)
                defaults = {"model_input_names": Tokenizer.MODEL_INPUT_NAMES, **kind.options_in(parts)}
                own_parts = kind.from_pretrained(path_or_id, **{**defaults, **hub}).parts()
                differing = [name for name in own_parts if own_parts[name] != parts[name]]
                if not differing:
                    return kind.from_pretrained(path_or_id, **{**defaults, **options})
                description = f"{description} model with another {', '.join(differing)} than {kind.__name__}'s"
        raise UnsupportedError(f"{path} holds a {description}; bertgen has {', '.join(cls.CLASSES)}")
