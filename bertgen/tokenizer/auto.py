"""AutoTokenizer: the class of tokenizer that a checkpoint asks for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

from ..errors import UnsupportedError
from .bert_generation import CONFIG_FILE, BertGenerationTokenizer, read_optional

HUB_OPTIONS = ("revision", "cache_dir", "token", "local_files_only")


class AutoTokenizer:
    """Finds the tokenizer class a checkpoint asks for."""

    # What bertgen has, by the class name that configuration files hold.
    CLASSES: ClassVar = {"BertGenerationTokenizer": BertGenerationTokenizer}
    # The class name where the files hold none, by the model type of the encoder.
    CLASS_OF_MODEL: ClassVar = {
        "bert-generation": "BertGenerationTokenizer",
        "bert": "BertTokenizer",
        "roberta": "RobertaTokenizer",
    }

    @classmethod
    def from_pretrained(cls, path_or_id: str | os.PathLike, **options: Any) -> BertGenerationTokenizer:
        """Load the tokenizer of a directory or hub id; options as `BertGenerationTokenizer.from_pretrained`.

        Raises:
            UnsupportedError: the checkpoint's tokenizer is of a class that bertgen does not have (its name).
            CheckpointError, ConfigError: as `BertGenerationTokenizer.from_pretrained`.
        """
        name = "BertGenerationTokenizer"
        if not Path(path_or_id).is_file():
            hub = {name: options[name] for name in HUB_OPTIONS if name in options}
            saved = read_optional(path_or_id, CONFIG_FILE, hub)
            config = read_optional(path_or_id, "config.json", hub)
            half = config.get("encoder")
            model_type = (half if isinstance(half, dict) else config).get("model_type")
            if model_type is not None:
                name = cls.CLASS_OF_MODEL.get(model_type, f"for models of type {model_type!r}")
            name = saved.get("tokenizer_class") or config.get("tokenizer_class") or name
        if (found := cls.CLASSES.get(str(name).removesuffix("Fast"))) is None:
            raise UnsupportedError(f"{path_or_id} has a tokenizer {name}; bertgen has {', '.join(cls.CLASSES)}")
        return found.from_pretrained(path_or_id, **options)
