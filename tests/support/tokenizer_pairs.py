"""Pairs of a bertgen and a transformers tokenizer on small vocabularies."""

from __future__ import annotations

import pytest
from tokenizers import ByteLevelBPETokenizer

from bertgen import BertGenerationTokenizer, BertTokenizer, RobertaTokenizer
from bertgen.hub import DEMO_MODEL

TEXTS = ["Hello worlds", "", " a  b ", "naïve über 中文!", "don't 🙂 x\ty", "[MASK] zzz <mask> Hello", "ﬁne ½ x"]
# Options of a call for the columns besides ids, types and mask.
EXTRA_COLUMNS = dict(return_offsets_mapping=True, return_special_tokens_mask=True, return_length=True)
VOCABULARY = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] hello world ##s na ##ive a . b x uber 中 文 don ' t 12 - 3 ##b ! fine".split()
)


def bert_pair(folder):
    """Two BertTokenizers on a new vocab.txt in a folder."""
    import transformers

    (folder / "vocab.txt").write_text("\n".join(VOCABULARY), encoding="utf-8")
    return BertTokenizer.from_pretrained(folder), transformers.BertTokenizer.from_pretrained(folder)


def roberta_pair(folder, **options):
    """Two RobertaTokenizers on a vocabulary that is trained on TEXTS and saved in a folder."""
    import transformers

    library = ByteLevelBPETokenizer()
    library.train_from_iterator(TEXTS * 3, 300, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    library.save_model(str(folder))
    transformers.RobertaTokenizer(f"{folder}/vocab.json", f"{folder}/merges.txt").save_pretrained(folder)
    return tuple(kind.from_pretrained(folder, **options) for kind in (RobertaTokenizer, transformers.RobertaTokenizer))


@pytest.fixture(scope="module", params=["bert", "roberta", "roberta with prefix space", "roberta untrimmed"])
def fast_pair(request, tmp_path_factory):
    """BertTokenizers or RobertaTokenizers."""
    folder = tmp_path_factory.mktemp("tokenizer")
    if request.param == "bert":
        return bert_pair(folder)
    options = {"roberta": {}, "roberta untrimmed": {"trim_offsets": False}}.get(
        request.param, {"add_prefix_space": True}
    )
    return roberta_pair(folder, **options)


@pytest.fixture(scope="module")
def demo_pair():
    """BertGenerationTokenizers on the vocabulary of the demo model."""
    import transformers

    kinds = (BertGenerationTokenizer, transformers.BertGenerationTokenizer)
    return tuple(kind(f"{DEMO_MODEL}/spiece.model") for kind in kinds)
