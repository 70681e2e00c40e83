"""BLEU and chrF by sacrebleu: values, signatures, and texts that do not belong together."""

from __future__ import annotations

import pytest

from bertgen import InputError
from bertgen.metrics import bleu, chrf

TEXTS = ["the old house is cold today", "we drink water in the morning"]


@pytest.mark.parametrize("metric", [bleu, chrf])
def test_equal_texts_score_100_and_other_texts_less(metric):
    assert metric(TEXTS, [[text] for text in TEXTS]).value == pytest.approx(100)
    assert metric(TEXTS, [["nothing in common"], ["of any kind"]]).value < 20


def test_the_best_of_several_references_counts():
    one = bleu(TEXTS, [["something else entirely"], [TEXTS[1]]]).value
    more = bleu(TEXTS, [["something else entirely", TEXTS[0]], [TEXTS[1]]]).value
    assert more == pytest.approx(100) and one < 90


def test_bleu_is_that_of_sacrebleu_with_its_signature():
    import sacrebleu

    references = ["the old house was cold", "we drank water this morning"]
    score = bleu(TEXTS, [[reference] for reference in references])
    assert score.value == pytest.approx(sacrebleu.corpus_bleu(TEXTS, [references]).score)
    assert score.signature.startswith("nrefs:1|case:mixed|eff:no|tok:13a|")
    assert "nc:6" in chrf(TEXTS, [[reference] for reference in references]).signature


@pytest.mark.parametrize("outputs", [[], "text", ["text", 5], None])
def test_outputs_that_are_no_texts_are_refused(outputs):
    with pytest.raises(InputError, match="outputs must be a list of at least one text"):
        bleu(outputs, [["text"]])


@pytest.mark.parametrize("references", [[], [["a"]], [["a"], []], [["a"], "b"], [["a"], [5]], "ab", None])
def test_references_that_do_not_belong_to_the_outputs_are_refused(references):
    with pytest.raises(InputError, match="references must be a list of texts for each of the outputs"):
        chrf(TEXTS, references)


def test_bleu_takes_any_number_of_references():
    texts = ["the old house is cold today", "we drink water in the morning"]
    assert bleu(texts, [["something else entirely", texts[0]], [texts[1]]]).value == pytest.approx(100)
    assert bleu(texts, [["something else entirely"], [texts[1]]]).value < 90
