"""AutoTokenizer: the class of tokenizer that a checkpoint asks for."""

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
    """Finds the tokenizer class a checkpoint asks for."""

    # What bertgen has, by the class name that configuration files hold (with or without "Fast" behind it).
    CLASSES: ClassVar[dict[str, type[Tokenizer]]] = {
        one.__name__: one for one in (BertGenerationTokenizer, BertTokenizer, RobertaTokenizer)
    }
    # The class name where the files hold none, by the model type of the encoder.
    CLASS_OF_MODEL: ClassVar = {
        "bert-generation": "BertGenerationTokenizer",
        "bert": "BertTokenizer",
        "roberta": "RobertaTokenizer",
    }
    # What transformers 5 and 4 write for a tokenizer that is nothing but its tokenizer.json.
    NO_CLASS: ClassVar = ("TokenizersBackend", "PreTrainedTokenizerFast")

    @classmethod
    @path_aliases
    def from_pretrained(cls, path_or_id: str | os.PathLike, **options: Any) -> Tokenizer:
        """Load the tokenizer of a directory or hub id; options as `Tokenizer.from_pretrained`, or the model's `config`.

        `tokenizer_config.json` names the class, else `config.json`, else the model type of the encoder does. Where that
        class finds no vocabulary but just one other class does, it is the other class.

        Raises:
            UnsupportedError: the checkpoint's tokenizer is of a class that bertgen does not have (its name).
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
        if (found := cls.CLASSES.get(name.removesuffix("Fast"))) is None:
            raise UnsupportedError(f"{path_or_id} has a tokenizer {name}; bertgen has {', '.join(cls.CLASSES)}")
        if not found.has_vocabulary(path_or_id, hub):
            others = [other for other in cls.CLASSES.values() if other.has_vocabulary(path_or_id, hub)]
            found = others[0] if len(others) == 1 else found
        return found.from_pretrained(path_or_id, **options)

    @classmethod
    def _of_file(cls, path: Path) -> type[Tokenizer]:
        if path.suffix == ".json":
            return BertTokenizer if model_in(path) == BertTokenizer.MODEL else RobertaTokenizer
        return BertTokenizer if path.suffix == ".txt" else BertGenerationTokenizer

    @classmethod
    def _name(cls, path_or_id: str | os.PathLike, hub: dict[str, Any], given: Any) -> str:
        saved = read_optional(path_or_id, CONFIG_FILE, hub)
        config = read_optional(path_or_id, "config.json", hub) if given is None else given.to_dict()
        half = config.get("encoder")
        model_type = (half if isinstance(half, dict) else config).get("model_type", "bert-generation")
        of_model = cls.CLASS_OF_MODEL.get(str(model_type), f"for models of type {model_type!r}")
        return str(saved.get("tokenizer_class") or config.get("tokenizer_class") or of_model)

    @classmethod
    def _from_pipeline(
        cls, path_or_id: str | os.PathLike, hub: dict[str, Any], options: dict[str, Any]
    ) -> FastTokenizer:
        """Load a tokenizer.json that says all by itself, if one of the classes does exactly what it says."""
        path = resolve_file(path_or_id, TOKENIZER_FILE, hub)
        kind = model_in(path)
        for found in (BertTokenizer, RobertaTokenizer):
            if kind == found.MODEL:
                parts = parts_of(path)
                own = {"model_input_names": Tokenizer.MODEL_INPUT_NAMES, **found.options_in(parts)}
                mine = found.from_pretrained(path_or_id, **{**own, **hub}).parts()
                differing = [name for name in mine if mine[name] != parts[name]]
                if not differing:
                    return found.from_pretrained(path_or_id, **{**own, **options})
                kind = f"{kind} model with another {', '.join(differing)} than {found.__name__}'s"
        raise UnsupportedError(f"{path} holds a {kind}; bertgen has {', '.join(cls.CLASSES)}")
