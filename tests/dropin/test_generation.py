"""`generate` of accelerated models against that of plain ones: tokens, warnings and errors."""

from __future__ import annotations

import copy
import logging
import warnings

import pytest
import torch
import transformers
from transformers import (
    EosTokenCriteria,
    MaxLengthCriteria,
    MaxTimeCriteria,
    MinLengthLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

import bertgen
from bertgen.dropin import cache_argument
from tests.support.dropin_models import END, KINDS, START, batch, distance, make_both, make_decoder, make_model, prompts


def outcome(call):
    """The result or error of a call, and the messages of transformers and of warnings, sorted."""
    message = []

    class Listener(logging.Handler):
        def emit(self, record):
            message.append(record.getMessage())

    transformers.utils.logging.warning_once.cache_clear()
    logger, listener = logging.getLogger("transformers"), Listener()
    level = logger.level
    logger.setLevel(logging.WARNING)  # other files of tests silence it
    logger.addHandler(listener)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                result = call()
            except Exception as error:
                result = f"{type(error).__name__}: {error}"
    finally:
        logger.removeHandler(listener)
        logger.setLevel(level)
    if not isinstance(result, (str, list)):
        result = getattr(result, "sequences", result).tolist()
    return result, sorted([*message, *(str(one.message) for one in caught)])


def same(theirs, ours, **options):
    """Assert that the call gives the same with both models; returns the outputs."""
    expected, got = (outcome(lambda m=m: m.generate(**options)) for m in (theirs, ours))
    assert got == expected
    return got[0]


PROMPTS = {
    "one token": lambda: dict(input_ids=prompts(length=1, left=(0, 0, 0))[0]),
    "prompt": lambda: dict(input_ids=prompts(left=(0, 0, 0))[0]),
    "positional": lambda: dict(inputs=prompts(left=(0, 0, 0))[0]),
    "padded, no mask": lambda: dict(input_ids=prompts()[0]),
    "padded": lambda: dict(zip(("input_ids", "attention_mask"), prompts(), strict=True)),
    "embeddings": lambda: dict(inputs_embeds=torch.linspace(-1, 1, 3 * 6 * 32).view(3, 6, 32)),
    "padded embeddings": lambda: dict(
        inputs_embeds=torch.linspace(-1, 1, 3 * 6 * 32).view(3, 6, 32), attention_mask=prompts()[1]
    ),
    "both": lambda: dict(
        input_ids=prompts()[0], attention_mask=prompts()[1],
        inputs_embeds=torch.linspace(-1, 1, 3 * 6 * 32).view(3, 6, 32),
    ),
    "positions": lambda: dict(input_ids=prompts()[0], position_ids=torch.arange(6).flip(0).expand(3, -1) + 3),
    "nothing": lambda: dict(bos_token_id=START),
}  # fmt: skip
DECODER_SEARCHES = {
    "greedy": dict(max_new_tokens=9),
    "beams": dict(max_new_tokens=9, num_beams=3, num_return_sequences=2),
    "default": {},
    "penalty": dict(max_new_tokens=9, repetition_penalty=3.0, no_repeat_ngram_size=2),
    "scores": dict(max_length=12, return_dict_in_generate=True, output_scores=True),
}


@pytest.mark.parametrize("search", DECODER_SEARCHES)
@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_decoder_without_encoder(kind, prompt, search):
    same(make_decoder(kind), make_decoder(kind, accelerated=True), **PROMPTS[prompt](), **DECODER_SEARCHES[search])


@pytest.mark.parametrize("kind", KINDS)
def test_a_decoder_without_encoder_gives_the_same_tokens_in_every_way(kind, calls):
    """bertgen's search, bertgen's forward in transformers' loop, and transformers' own code."""
    ids, mask = prompts()
    inputs = dict(input_ids=ids, attention_mask=mask, max_new_tokens=9)
    expected = make_decoder(kind).generate(**inputs)
    ours = make_decoder(kind, accelerated=True)
    assert torch.equal(ours.generate(**inputs), expected) and calls == ["generation"]
    results = ours.generate(**inputs, output_attentions=True, return_dict_in_generate=True).sequences
    assert torch.equal(results, expected) and calls == ["generation"]
    assert torch.equal(make_decoder(kind, True, generate=False).generate(**inputs), expected)
    assert torch.equal(ours.generate(**inputs, use_cache=False), expected)


def test_seeded_samples_of_a_decoder_without_encoder(calls):
    ids, mask = prompts()
    results = []
    for fast in (False, True):
        torch.manual_seed(7)
        model = make_decoder("roberta", fast)
        results.append(model.generate(input_ids=ids, attention_mask=mask, do_sample=True, top_k=None, max_new_tokens=9))
    assert torch.equal(*results) and calls == ["generation"]


@pytest.mark.parametrize("decoder", KINDS)
@pytest.mark.parametrize("beams", [1, 3])
def test_halves_of_roberta_in_a_pair(decoder, beams, calls):
    theirs, ours = make_both("roberta", decoder_kind=decoder)
    inputs, _ = batch(pad=1)
    same(theirs, ours, **inputs, max_new_tokens=9, num_beams=beams)
    prefix = torch.tensor([[START, 9, 8], [START, 7, 6], [START, 5, 4]])
    same(theirs, ours, **inputs, decoder_input_ids=prefix, max_new_tokens=9, num_beams=beams)
    same(theirs, ours, **inputs, decoder_input_ids=prefix[:, 1:], max_new_tokens=9, num_beams=beams)
    mask = torch.tensor([[1, 1, 1], [0, 1, 1], [0, 0, 1]])
    left = prefix.masked_fill(mask == 0, theirs.config.decoder.pad_token_id)
    same(theirs, ours, **inputs, decoder_input_ids=left, decoder_attention_mask=mask, max_new_tokens=9, num_beams=beams)
    assert calls == ["generation"] * 4


LENGTHS = {
    "the default": ({}, {}),
    "model 3 new, call 8": (dict(max_new_tokens=3), dict(max_length=8)),
    "model 8, call 3 new": (dict(max_length=8), dict(max_new_tokens=3)),
    "model 8": (dict(max_length=8), {}),
    "call 8": ({}, dict(max_length=8)),
    "both": ({}, dict(max_length=8, max_new_tokens=5)),
    "none": (dict(max_new_tokens=3), dict(max_new_tokens=None)),
    "configuration": (dict(max_new_tokens=3), dict(generation_config=transformers.GenerationConfig(max_length=9))),
    "configuration and keyword": (
        dict(max_new_tokens=3), dict(generation_config=transformers.GenerationConfig(max_length=9), num_beams=2)
    ),
    "too short a limit": ({}, dict(max_length=1)),
    "a minimum out of reach": ({}, dict(min_length=30)),
    "new tokens out of reach": ({}, dict(min_new_tokens=9, max_new_tokens=6)),
    "two minima": ({}, dict(min_new_tokens=9, min_length=4, max_new_tokens=12)),
    "a minimum": ({}, dict(min_new_tokens=9)),
}  # fmt: skip


@pytest.mark.parametrize("case", LENGTHS)
def test_lengths_of_model_and_call(case):
    (own, call), (theirs, ours), (inputs, _) = LENGTHS[case], make_both(), batch()
    for model in (theirs, ours):
        for name, value in own.items():
            setattr(model.generation_config, name, value)
    same(theirs, ours, **inputs, **call)


def test_the_usual_lengths_need_no_fallback(calls):
    (theirs, ours), (inputs, _) = make_both(), batch()
    theirs.generation_config.max_new_tokens = ours.generation_config.max_new_tokens = 3
    assert len(same(theirs, ours, **inputs, max_length=8)[0]) == 4  # new tokens win, whichever level gives them
    for call in ({}, dict(max_new_tokens=5), dict(max_length=8, max_new_tokens=None)):
        same(theirs, ours, **inputs, **call)
    assert calls == ["generation"] * 4 and not ours._bertgen.fallbacks


WARNED = {
    "sampling without do_sample": dict(temperature=0.7),
    "an end token that is none": dict(eos_token_id=-1),
    "a padding token that is none": dict(pad_token_id=-1),
    "no padding token": dict(pad_token_id=None, attention_mask=None),
    "the end token as padding token": dict(pad_token_id=END, attention_mask=None),
    "a penalty on ids without input_ids": dict(encoder_repetition_penalty=2.0, input_ids=None),
    "no such argument": dict(nonsense=1),
    "scores without a dictionary": dict(output_scores=True),
    "n-best without beams": dict(num_return_sequences=2),
    "an empty batch": dict(input_ids=torch.ones(0, 4, dtype=torch.long), attention_mask=None),
}


@pytest.mark.parametrize("case", WARNED)
def test_warnings_and_errors_are_those_of_transformers(case):
    (theirs, ours), (inputs, _) = make_both(), batch()
    if case == "a penalty on ids without input_ids":
        inputs["inputs_embeds"] = torch.linspace(-1, 1, 3 * 9 * 32).view(3, 9, 32)
    same(theirs, ours, **{**inputs, "max_new_tokens": 6, **WARNED[case]})


@pytest.mark.parametrize("masked", [True, False])
def test_a_prompt_padded_on_the_right_gives_one_warning(masked):
    ids, mask = (t.flip(1) for t in prompts())
    inputs = dict(input_ids=ids, attention_mask=mask) if masked else dict(input_ids=ids)
    same(make_decoder("bert"), make_decoder("bert", accelerated=True), **inputs, max_new_tokens=5)


REPLACED = {
    "length": lambda: dict(stopping_criteria=[MaxLengthCriteria(14)]),
    "length below": lambda: dict(stopping_criteria=[MaxLengthCriteria(4)]),
    "two lengths": lambda: dict(stopping_criteria=[MaxLengthCriteria(12), MaxLengthCriteria(14)]),
    "length at once": lambda: dict(stopping_criteria=[MaxLengthCriteria(1)]),
    "end": lambda: dict(stopping_criteria=[EosTokenCriteria([7, 11, 15])]),
    "time": lambda: dict(max_time=0.0, stopping_criteria=[MaxTimeCriteria(100.0)]),
    "repetition": lambda: dict(repetition_penalty=9.0, logits_processor=[RepetitionPenaltyLogitsProcessor(1.01)]),
    "n-grams": lambda: dict(no_repeat_ngram_size=1, logits_processor=[NoRepeatNGramLogitsProcessor(3)]),
    "suppressed": lambda: dict(suppress_tokens=[5, 6, 7], logits_processor=[SuppressTokensLogitsProcessor([8, 9])]),
    "minimum": lambda: dict(min_length=9, logits_processor=[MinLengthLogitsProcessor(5, torch.tensor([END]))]),
    "minimum of two": lambda: dict(
        min_new_tokens=6, logits_processor=[MinLengthLogitsProcessor(5, torch.tensor([END]))]
    ),
    "minimum of none": lambda: dict(
        min_new_tokens=0, logits_processor=[MinLengthLogitsProcessor(5, torch.tensor([END]))]
    ),
    "not there": lambda: dict(logits_processor=[SuppressTokensLogitsProcessor([8, 9])]),
}


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("case", REPLACED)
def test_a_custom_object_replaces_the_built_in_one(case, beams):
    (theirs, ours), (inputs, _) = make_both(), batch()
    options = REPLACED[case]()
    options = {
        name: getattr(transformers, kind)(options[name])
        for name, kind in (("stopping_criteria", "StoppingCriteriaList"), ("logits_processor", "LogitsProcessorList"))
        if name in options
    } | {name: value for name, value in options.items() if name not in ("stopping_criteria", "logits_processor")}
    same(theirs, ours, **inputs, **{"max_new_tokens": 8, **options}, num_beams=beams)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("case", REPLACED)
def test_a_custom_object_replaces_the_built_in_one_in_bertgens_own_classes(case, beams):
    theirs, (inputs, _) = make_model(), batch()
    config = bertgen.EncoderDecoderConfig.from_dict(theirs.config.to_dict())
    ours = bertgen.EncoderDecoderModel(config).eval()
    ours.load_state_dict(theirs.state_dict(), strict=False)
    ours.generation_config = bertgen.GenerationConfig(pad_token_id=0, decoder_start_token_id=START, eos_token_id=END)
    call = {"max_new_tokens": 8, **REPLACED[case](), "num_beams": beams}
    got = ours.generate(**inputs, **call)
    if beams > 1 and case in ("length", "two lengths"):  # transformers' beams have no room for more: an IndexError
        call = dict(max_length=14 if case == "length" else 12, num_beams=beams)
    assert torch.equal(got, theirs.generate(**inputs, **call))


def test_an_end_token_of_a_criterion_pads_rows_where_the_model_has_none():
    theirs, (inputs, _) = make_model(), batch()
    config = bertgen.EncoderDecoderConfig.from_dict(theirs.config.to_dict())
    own = bertgen.EncoderDecoderModel(config).eval()
    own.load_state_dict(theirs.state_dict(), strict=False)
    settings = dict(pad_token_id=0, decoder_start_token_id=START)
    own.generation_config = bertgen.GenerationConfig(**settings)
    accelerated = bertgen.accelerate(make_model())
    for model in (theirs, accelerated):
        model.generation_config = transformers.GenerationConfig(**settings)
        model.config.eos_token_id = None
    first = theirs.generate(**inputs, max_new_tokens=8)
    for token in first[:, 3].tolist():
        call = dict(**inputs, max_new_tokens=8)
        criteria = transformers.StoppingCriteriaList([EosTokenCriteria(token)])
        expected = theirs.generate(**call, stopping_criteria=criteria)
        assert not torch.equal(expected, first[:, : expected.shape[1]])
        for model in (own, accelerated):
            assert torch.equal(model.generate(**call, stopping_criteria=[EosTokenCriteria(token)]), expected)
    criteria = [EosTokenCriteria(first[0, 3].item())]
    same(theirs, accelerated, **inputs, max_new_tokens=8, num_beams=3, stopping_criteria=criteria)


SPECIAL_CASES = {
    "no decision about a cache": dict(use_cache=None),
    "no decision about a cache of beams": dict(use_cache=None, num_beams=3),
    "several forced ends of beams": dict(num_beams=4, forced_eos_token_id=[END, 5, 60], max_new_tokens=3),
    "several forced ends": dict(forced_eos_token_id=[END, 5, 60], max_new_tokens=3),
}


@pytest.mark.parametrize("case", SPECIAL_CASES)
def test_special_cases_of_transformers_are_followed(case):
    (theirs, ours), (inputs, _) = make_both(), batch()
    same(theirs, ours, **{**inputs, "max_new_tokens": 6, **SPECIAL_CASES[case]})


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("names", [(), ("output_scores",), ("output_logits",)])
def test_outputs_have_the_requested_fields(names, beams):
    (theirs, ours), (inputs, _) = make_both(), batch()
    options = dict(max_new_tokens=6, num_beams=beams, return_dict_in_generate=True, **dict.fromkeys(names, True))
    expected, got = (model.generate(**inputs, **options) for model in (theirs, ours))
    assert type(got) is type(expected) and list(got.keys()) == list(expected.keys())


@pytest.mark.parametrize("kind", KINDS)
def test_token_types_are_accepted_where_transformers_accepts_them(kind):
    (theirs, ours), (inputs, _) = make_both(kind), batch()
    same(theirs, ours, **inputs, token_type_ids=torch.zeros_like(inputs["input_ids"]), max_new_tokens=5)
    ids, mask = prompts()
    call = dict(input_ids=ids, attention_mask=mask, token_type_ids=torch.zeros_like(ids), max_new_tokens=5)
    same(make_decoder(kind), make_decoder(kind, accelerated=True), **call)


def test_a_batch_without_a_mask_gives_a_warning_for_every_kind_of_input():
    (theirs, ours), (arguments, _) = make_both(), batch()
    with torch.no_grad():
        states = theirs.encoder(**arguments)
        embeds = theirs.get_input_embeddings()(arguments["input_ids"])
    for inputs in (
        dict(inputs_embeds=embeds),
        dict(encoder_outputs=states),
        dict(decoder_input_ids=arguments["input_ids"][:, :2]),
    ):
        for pad in (None, END):
            for model in (theirs, ours):
                model.generation_config.pad_token_id, model.generation_config.bos_token_id = pad, START
            expected, got = (
                outcome(lambda m=m, i=inputs: m.generate(**copy.deepcopy(i), max_new_tokens=4)) for m in (theirs, ours)
            )
            assert got == expected
            assert any("attention mask" in one for one in got[1])


def test_a_penalty_on_the_input_gives_a_warning_with_embeddings_and_ids():
    ids, mask = prompts()
    embeds = torch.linspace(-1, 1, 3 * 6 * 32).view(3, 6, 32)
    call = dict(input_ids=ids, inputs_embeds=embeds, attention_mask=mask, max_new_tokens=5)
    for name in ("encoder_repetition_penalty", "repetition_penalty"):
        same(make_decoder("bert"), make_decoder("bert", accelerated=True), **call, **{name: 1.5})


def test_a_prompt_padded_on_the_right_gives_a_warning_only_in_the_cases_of_transformers():
    ids, mask = (t.flip(1) for t in prompts())
    embeds = torch.linspace(-1, 1, 3 * 6 * 32).view(3, 6, 32)
    same(
        make_decoder("bert"),
        make_decoder("bert", accelerated=True),
        inputs_embeds=embeds,
        attention_mask=mask,
        max_new_tokens=5,
    )
    models = make_decoder("bert"), make_decoder("bert", accelerated=True)
    for model in models:
        model.generation_config.pad_token_id = model.generation_config.eos_token_id = None
    same(*models, input_ids=ids, attention_mask=mask, max_new_tokens=5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_continues_with_all_tokens_or_with_the_new_ones(kind):
    ids, mask = prompts()
    more = torch.tensor([[9, 8], [7, 6], [5, 4]])
    results = []
    for model in (make_decoder(kind), make_decoder(kind, accelerated=True)):
        for new_only in (False, True):
            with torch.no_grad():
                past = model(input_ids=ids, attention_mask=mask, use_cache=True).past_key_values
            fed = more if new_only else torch.cat((ids, more), 1)
            whole = torch.cat((mask, torch.ones_like(more)), 1)
            call = {"input_ids": fed, "attention_mask": whole, cache_argument.NAME: past, "max_new_tokens": 5}
            results.append(outcome(lambda m=model, c=call: m.generate(**c))[0])
    assert results[:2] == results[2:]
    assert not isinstance(results[0], str)


@pytest.mark.parametrize("width", [5, 12])
@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_of_another_length_than_the_prompt(kind, width):
    ids = prompts(left=(0, 0, 0))[0]
    mask = torch.ones(3, width, dtype=torch.long)
    same(make_decoder(kind), make_decoder(kind, accelerated=True), input_ids=ids, attention_mask=mask, max_new_tokens=5)


def test_logits_are_the_models_own_where_a_processor_writes_into_its_scores():
    ours, (inputs, _) = bertgen.accelerate(make_model()), batch()
    call = dict(**inputs, max_new_tokens=4, return_dict_in_generate=True, output_logits=True)
    result = ours.generate(**call, logits_processor=[lambda tokens, scores: scores.sub_(100.0)])
    expected = ours.generate(**call)
    assert torch.equal(result.sequences, expected.sequences)
    assert all(torch.equal(a, b) for a, b in zip(result.logits, expected.logits, strict=True))


SEARCHES = {
    "greedy": {},
    "beams": dict(num_beams=4),
    "beams, all of them": dict(num_beams=3, num_return_sequences=3, length_penalty=0.5, early_stopping=True),
    "processors": dict(num_beams=2, no_repeat_ngram_size=2, repetition_penalty=1.3, min_new_tokens=4),
    "sampling": dict(do_sample=True, top_k=20, top_p=0.9, temperature=0.8),
    "a prefix": dict(decoder_input_ids=torch.tensor([[2, 7], [2, 8], [2, 9]])),
    "max_length": dict(max_length=7, max_new_tokens=None),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SEARCHES)
def test_generate(kind, name, calls):
    theirs, ours = make_both(kind)
    inputs, _ = batch(pad=theirs.config.pad_token_id)
    results = []
    for model in (theirs, ours):
        torch.manual_seed(3)
        results.append(model.generate(**inputs, **{"max_new_tokens": 14, **SEARCHES[name]}))
    assert torch.equal(*results)
    assert calls == ["generation"]


# transformers 5.24 changed both; under older versions its own loop runs.
CHANGED = {
    "sampled beams": dict(do_sample=True, num_beams=4, num_return_sequences=4, top_p=0.9, early_stopping=True),
    "outputs of a source": dict(
        do_sample=True,
        num_return_sequences=3,
        prefix_allowed_tokens_fn=lambda source, tokens: [1, 5 + source, 9 + source],
    ),
}


@pytest.mark.parametrize("name", CHANGED)
def test_generate_is_that_of_the_installed_version(name):
    (theirs, ours), (inputs, _) = make_both(), batch()
    for seed in range(4):
        results = []
        for model in (theirs, ours):
            torch.manual_seed(seed)
            results.append(model.generate(**inputs, max_new_tokens=6, **CHANGED[name]))
        assert torch.equal(*results)


@pytest.mark.parametrize("beams", [1, 3])
def test_generate_returns_the_outputs_of_transformers(beams):
    options = dict(max_new_tokens=6, num_beams=beams, return_dict_in_generate=True)
    options |= dict(output_scores=True, output_logits=True)
    (theirs, ours), (inputs, _) = make_both(), batch()
    expected, got = (model.generate(**inputs, **options) for model in (theirs, ours))
    assert type(got) is type(expected) and set(got.keys()) == set(expected.keys())
    assert torch.equal(got.sequences, expected.sequences)
    for name in ("scores", "logits"):
        assert all(distance(a, b) <= 1e-4 for a, b in zip(got[name], expected[name], strict=True))
    if beams > 1:
        assert torch.equal(got.beam_indices, expected.beam_indices)
        assert distance(got.sequences_scores, expected.sequences_scores) <= 1e-4
    cache = got.past_key_values
    assert cache.get_seq_length() == expected.past_key_values.get_seq_length()
    if beams == 1:  # of beams, transformers' cache is reordered once more at the end
        a, b = (c.self_attention_cache.layers[1].keys for c in (cache, expected.past_key_values))
        assert distance(a, b) <= 1e-4


def test_generate_without_a_mask_follows_the_installed_transformers():
    (theirs, ours), (inputs, _) = make_both(), batch()
    assert (inputs["input_ids"] == 0).any()
    options = dict(max_new_tokens=9, num_beams=2)
    assert torch.equal(*(model.generate(inputs["input_ids"], **options) for model in (theirs, ours)))


def test_generate_takes_processors_criteria_and_configurations_of_transformers(calls):
    (theirs, ours), (inputs, _) = make_both(), batch()
    results = []
    for model in (theirs, ours):
        model.generation_config.num_beams = 2  # the model's own options hold, and those of the call before them
        processors = transformers.LogitsProcessorList([transformers.SuppressTokensLogitsProcessor([5, 6, 7])])
        criteria = transformers.StoppingCriteriaList([transformers.MaxTimeCriteria(100.0)])
        config = transformers.GenerationConfig(max_new_tokens=8, eos_token_id=END, decoder_start_token_id=START)
        results.append(
            model.generate(**inputs, generation_config=config, logits_processor=processors, stopping_criteria=criteria)
        )
    assert torch.equal(*results) and calls == ["generation"]


def test_the_options_of_the_model_hold(calls):
    (theirs, ours), (inputs, _) = make_both(), batch()
    greedy = theirs.generate(**inputs, max_new_tokens=9)
    for model in (theirs, ours):
        model.generation_config.no_repeat_ngram_size, model.generation_config.max_new_tokens = 1, 9
    results = [model.generate(**inputs) for model in (theirs, ours)]
    assert torch.equal(*results) and not torch.equal(results[0], greedy) and calls == ["generation"]


def test_a_streamer():
    (theirs, ours), (inputs, _) = make_both(), batch()
    one = {name: t[:1] for name, t in inputs.items()}
    heard = []

    class Listener:
        def put(self, value):
            heard[-1] += value.flatten().tolist()

        def end(self):
            heard[-1].append("end")

    for model in (theirs, ours):
        heard.append([])
        model.generate(**one, max_new_tokens=5, streamer=Listener())
    assert heard[0] == heard[1] and len(heard[0]) > 3


def _their_cache():
    return transformers.EncoderDecoderCache(transformers.DynamicCache(), transformers.DynamicCache())


FALLBACKS = {
    "output_attentions is requested": lambda: dict(output_attentions=True, return_dict_in_generate=True),
    "watermarking_config": lambda: dict(watermarking_config=transformers.WatermarkingConfig()),
    "cache_implementation='static'": lambda: dict(cache_implementation="static"),
    f"{cache_argument.NAME} is of class EncoderDecoderCache": lambda: {cache_argument.NAME: _their_cache()},
}


@pytest.mark.parametrize("reason", FALLBACKS)
def test_unsupported_options_go_through_transformers(reason, caplog):
    (theirs, ours), (inputs, _) = make_both(), batch()
    with caplog.at_level(logging.WARNING, logger="bertgen"):
        for _ in range(2):
            results = [model.generate(**inputs, max_new_tokens=5, **FALLBACKS[reason]()) for model in (theirs, ours)]
            assert torch.equal(*(getattr(one, "sequences", one) for one in results))
    ((message, count),) = [(k, n) for k, n in ours._bertgen.fallbacks.items() if k.startswith("generate: ")]
    assert reason in message and count == 2
    assert sum(r.getMessage().startswith("generate of") for r in caplog.records) == 1


def test_generate_with_active_dropout_falls_back(calls):
    model, (inputs, _) = bertgen.accelerate(make_model()), batch()
    model.train()
    model.generate(**inputs, max_new_tokens=3)  # dropout of 0: nothing acts
    assert calls == ["generation"]
    model.decoder.bert.encoder.layer[0].output.dropout.p = 0.5
    model.generate(**inputs, max_new_tokens=3)
    assert calls.count("generation") == 1


def test_generate_false_uses_the_loop_of_transformers_with_bertgens_forward(calls):
    theirs, ours = make_model(), bertgen.accelerate(make_model(), generate=False)
    inputs, _ = batch()
    for beams in (1, 4):
        assert torch.equal(*(m.generate(**inputs, max_new_tokens=9, num_beams=beams) for m in (theirs, ours)))
    assert "generation" not in calls and calls.count("forward") > 9 and not ours._bertgen.fallbacks
