"""A tiny BERT as transformers saves it after pre-training, with its vocabulary."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers


def make_bert(folder: Path) -> None:
    """Write the model and the files of its tokenizer into an existing folder."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = "this is a long article to summarize short summary".split()
    tokens = ["[PAD]", *words, *letters, *(f"##{letter}" for letter in letters)]
    tokens = list(dict.fromkeys(tokens))
    tokens += [f"[unused{i}]" for i in range(99 - len(tokens))]
    tokens += ["[UNUSED99]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert tokens.index("[CLS]") == 101
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")
    options = dict(do_lower_case=True, model_max_length=512)
    (folder / "tokenizer_config.json").write_text(json.dumps(options))
    torch.manual_seed(0)
    model = transformers.BertForPreTraining(
        transformers.BertConfig(
            vocab_size=len(tokens), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
            max_position_embeddings=64,
        )
    )  # fmt: skip
    model.save_pretrained(folder)
