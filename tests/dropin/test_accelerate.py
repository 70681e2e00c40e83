"""Accelerated models of transformers: the same answers, and everything that transformers does goes on working."""

from __future__ import annotations

import copy
import io
import json
import logging
import pickle

import pytest
import torch
import transformers
from transformers import EncoderDecoderModel

import bertgen
import bertgen.modules
from bertgen import ops
from bertgen.dropin import forward, generation
from bertgen.dropin.models import ACCELERATED

CONFIGS = {
    "bert-generation": transformers.BertGenerationConfig,
    "bert": transformers.BertConfig,
    "roberta": transformers.RobertaConfig,
}
KINDS = list(CONFIGS)
SIZES = dict(
    vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
    max_position_embeddings=40, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)  # fmt: skip
START, END = 2, 3


def pair(kind="bert-generation", decoder_kind=None, **decoder_options) -> EncoderDecoderModel:
    """A model of transformers whose outputs vary, and end now and then."""
    torch.manual_seed(0)
    encoder = CONFIGS[kind](**SIZES)
    sizes = {**SIZES, **decoder_options, "is_decoder": True, "add_cross_attention": True}
    decoder = CONFIGS[decoder_kind or kind](**sizes)
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    model = EncoderDecoderModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    for settings in (model.config, model.generation_config):
        settings.pad_token_id = decoder.pad_token_id
        settings.decoder_start_token_id, settings.eos_token_id = START, END
    return model


def batch(rows=3, length=9, pad=0):
    torch.manual_seed(1)
    ids = torch.randint(4, 99, (rows, length))
    mask = torch.ones_like(ids)
    mask[1, 6:], mask[2, 4:] = 0, 0
    labels = torch.randint(4, 99, (rows, 6))
    labels[1, 4:], labels[2, 1:] = -100, -100
    return dict(input_ids=ids.masked_fill(mask == 0, pad), attention_mask=mask), labels


@pytest.fixture
def calls(monkeypatch):
    """Names of what went through bertgen."""
    made: list[str] = []
    for module in (forward, generation):
        run, name = module._run, module.__name__.rpartition(".")[2]

        def counted(*args, run=run, name=name):
            made.append(name)
            return run(*args)

        monkeypatch.setattr(module, "_run", counted)
    return made


def distance(a, b):
    assert a.shape == b.shape and a.dtype == b.dtype
    return float((a - b).detach().abs().max()) if a.numel() else 0.0


def twins(kind="bert-generation", **options):
    """A model, and an accelerated one with the same weights."""
    return pair(kind, **options), bertgen.accelerate(pair(kind, **options))


CALLS = {
    "plain": lambda given, labels: {**given, "decoder_input_ids": labels.clamp(min=0)},
    "no mask": lambda given, labels: dict(input_ids=given["input_ids"], decoder_input_ids=labels.clamp(min=0)),
    "left": lambda given, labels: dict(
        input_ids=given["input_ids"].flip(1), attention_mask=given["attention_mask"].flip(1),
        decoder_input_ids=labels.clamp(min=0),
    ),
    "decoder mask": lambda given, labels: dict(
        **given, decoder_input_ids=labels.clamp(min=0), decoder_attention_mask=(labels != -100).long()
    ),
    "positions": lambda given, labels: dict(
        **given, decoder_input_ids=labels.clamp(min=0), position_ids=torch.arange(9).flip(0)[None] + 2,
        decoder_position_ids=torch.arange(6)[None] + 3,
    ),
    "states": lambda given, labels: dict(
        encoder_outputs=(torch.linspace(-1, 1, 3 * 9 * 32).view(3, 9, 32),), attention_mask=given["attention_mask"],
        decoder_input_ids=labels.clamp(min=0),
    ),
    "embeddings": lambda given, labels: dict(
        inputs_embeds=torch.linspace(-1, 1, 3 * 9 * 32).view(3, 9, 32), attention_mask=given["attention_mask"],
        decoder_inputs_embeds=torch.linspace(-1, 1, 3 * 6 * 32).view(3, 6, 32),
    ),
    "one token": lambda given, labels: {**given, "decoder_input_ids": labels[:, :1]},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CALLS)
def test_forward(kind, name, calls):
    theirs, ours = twins(kind)
    given = CALLS[name](*batch(pad=theirs.config.pad_token_id))
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            expected, got = theirs(**given), ours(**given)
        assert type(got) is type(expected) and list(got.keys()) == list(expected.keys())
        assert distance(got.logits, expected.logits) <= 1e-4
        real = given["attention_mask"].bool() if "attention_mask" in given else torch.ones(3, 9, dtype=torch.bool)
        a, b = (x.encoder_last_hidden_state[real] for x in (got, expected))
        assert distance(a, b) <= 1e-4
    assert calls == ["forward"] * 2


def test_halves_of_two_kinds_and_two_widths():
    given, labels = batch()
    theirs, ours = twins("roberta", decoder_kind="bert", hidden_size=24, intermediate_size=40)
    assert ours.enc_to_dec_proj.weight.shape == (24, 32)
    expected, got = (model(**given, labels=labels) for model in (theirs, ours))
    assert distance(got.loss, expected.loss) <= 1e-4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradients(kind, checkpointing, calls):
    theirs, ours = (model.train() for model in twins(kind))
    given, labels = batch(pad=theirs.config.pad_token_id)
    losses = []
    for model in (theirs, ours):
        if checkpointing:
            model.gradient_checkpointing_enable()
        output = model(**given, labels=labels)
        output.loss.backward()
        losses.append(output)
    assert calls == ["forward"] and losses[1].past_key_values is None
    twin = ours._bertgen.twin(ours).ours
    assert twin.is_gradient_checkpointing == twin.decoder.is_gradient_checkpointing == checkpointing
    assert distance(losses[0].loss, losses[1].loss) <= 1e-5
    read = labels != -100
    assert distance(losses[0].logits[read], losses[1].logits[read]) <= 1e-4
    checked = 0
    for (name, a), (other, b) in zip(theirs.named_parameters(), ours.named_parameters(), strict=True):
        assert name == other and (a.grad is None) == (b.grad is None), name
        if a.grad is not None:
            assert distance(a.grad, b.grad) <= 1e-4 * max(1.0, float(a.grad.abs().max())), name
            checked += 1
    assert checked > 40


def test_the_loss_of_an_accumulated_batch():
    """transformers ignores num_items_in_batch here, so that k steps make gradients k times too large."""
    model, (given, labels) = bertgen.accelerate(pair()), batch()
    whole = model(**given, labels=labels).loss
    assert distance(model(**given, labels=labels, num_items_in_batch=22).loss, whole * 11 / 22) <= 1e-5


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
    theirs, ours = twins(kind)
    given, _ = batch(pad=theirs.config.pad_token_id)
    found = []
    for model in (theirs, ours):
        torch.manual_seed(3)
        found.append(model.generate(**given, **{"max_new_tokens": 14, **SEARCHES[name]}))
    assert torch.equal(*found)
    assert calls == ["generation"]


@pytest.mark.parametrize("beams", [1, 3])
def test_generate_returns_what_transformers_does(beams):
    options = dict(max_new_tokens=6, num_beams=beams, return_dict_in_generate=True)
    options |= dict(output_scores=True, output_logits=True)
    (theirs, ours), (given, _) = twins(), batch()
    expected, got = (model.generate(**given, **options) for model in (theirs, ours))
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
    (theirs, ours), (given, _) = twins(), batch()
    assert (given["input_ids"] == 0).any()
    assert torch.equal(*(model.generate(given["input_ids"], max_new_tokens=9, num_beams=2) for model in (theirs, ours)))


def test_generate_takes_what_is_transformers_own(calls):
    (theirs, ours), (given, _) = twins(), batch()
    found = []
    for model in (theirs, ours):
        model.generation_config.num_beams = 2  # the model's own options hold, and those of the call before them
        processors = transformers.LogitsProcessorList([transformers.SuppressTokensLogitsProcessor([5, 6, 7])])
        criteria = transformers.StoppingCriteriaList([transformers.MaxTimeCriteria(100.0)])
        config = transformers.GenerationConfig(max_new_tokens=8, eos_token_id=END, decoder_start_token_id=START)
        found.append(
            model.generate(**given, generation_config=config, logits_processor=processors, stopping_criteria=criteria)
        )
    assert torch.equal(*found) and calls == ["generation"]


def test_the_options_of_the_model_hold(calls):
    (theirs, ours), (given, _) = twins(), batch()
    greedy = theirs.generate(**given, max_new_tokens=9)
    for model in (theirs, ours):
        model.generation_config.no_repeat_ngram_size, model.generation_config.max_new_tokens = 1, 9
    found = [model.generate(**given) for model in (theirs, ours)]
    assert torch.equal(*found) and not torch.equal(found[0], greedy) and calls == ["generation"]


def test_a_streamer():
    (theirs, ours), (given, _) = twins(), batch()
    one = {name: t[:1] for name, t in given.items()}
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


DETOURS = {
    "output_attentions is asked for": lambda: dict(output_attentions=True, return_dict_in_generate=True),
    "watermarking_config": lambda: dict(watermarking_config=transformers.WatermarkingConfig()),
    "cache_implementation='static'": lambda: dict(cache_implementation="static"),
    "past_key_values are a EncoderDecoderCache": lambda: dict(past_key_values=_their_cache()),
}


def test_no_cache_where_nobody_goes_on(calls):
    model, (given, labels) = bertgen.accelerate(pair()), batch()
    ids = labels.clamp(min=0)
    assert model(**given, decoder_input_ids=ids, labels=labels).past_key_values is None
    assert model(**given, decoder_input_ids=ids).past_key_values.get_seq_length() == 6
    assert model.train()(**given, decoder_input_ids=ids).past_key_values is None and len(calls) == 3


def test_a_cache_that_transformers_filled(calls):
    (theirs, ours), (given, labels) = twins(), batch()
    ids, cache = labels.clamp(min=0), bertgen.PagedCache(theirs.config)
    with torch.no_grad():
        first = theirs(**given, decoder_input_ids=ids, past_key_values=cache)
        more = dict(encoder_outputs=(first.encoder_last_hidden_state,), attention_mask=given["attention_mask"])
        expected = theirs(**given, decoder_input_ids=torch.cat((ids, ids[:, :1]), 1)).logits[:, -1:]
        got = ours(**more, decoder_input_ids=ids[:, :1], past_key_values=cache).logits
    assert distance(got, expected) <= 1e-4 and not calls


@pytest.mark.parametrize("reason", DETOURS)
def test_what_bertgen_does_not_generate_goes_through_transformers(reason, caplog):
    (theirs, ours), (given, _) = twins(), batch()
    with caplog.at_level(logging.WARNING, logger="bertgen"):
        for _ in range(2):
            found = [model.generate(**given, max_new_tokens=5, **DETOURS[reason]()) for model in (theirs, ours)]
            assert torch.equal(*(getattr(one, "sequences", one) for one in found))
    ((said, count),) = [(k, n) for k, n in ours._bertgen.detours.items() if k.startswith("generate: ")]
    assert reason in said and count == 2
    assert sum(r.getMessage().startswith("generate of") for r in caplog.records) == 1


def test_dropout_in_generate_is_transformers_matter(calls):
    model, (given, _) = bertgen.accelerate(pair()), batch()
    model.train()
    model.generate(**given, max_new_tokens=3)  # dropout of 0: nothing acts
    assert calls == ["generation"]
    model.decoder.bert.encoder.layer[0].output.dropout.p = 0.5
    model.generate(**given, max_new_tokens=3)
    assert calls.count("generation") == 1


def test_generate_false_uses_the_loop_of_transformers_with_our_forward(calls):
    theirs, ours = pair(), bertgen.accelerate(pair(), generate=False)
    given, _ = batch()
    for beams in (1, 4):
        assert torch.equal(*(m.generate(**given, max_new_tokens=9, num_beams=beams) for m in (theirs, ours)))
    assert "generation" not in calls and calls.count("forward") > 9 and not ours._bertgen.detours


def test_a_call_that_goes_on(calls):
    (theirs, ours), (given, labels) = twins(), batch()
    ids = labels.clamp(min=0)
    logits = []
    with torch.no_grad():
        for model in (theirs, ours):
            first = model(**given, decoder_input_ids=ids)
            states, cache = (first.encoder_last_hidden_state,), first.past_key_values
            more = dict(encoder_outputs=states, attention_mask=given["attention_mask"])
            second = model(**more, decoder_input_ids=ids[:, :2], past_key_values=cache)
            cache = second.past_key_values
            cache.reorder_cache(torch.tensor([0, 1, 2]))
            logits.append(model(**more, decoder_input_ids=ids[:, :1], past_key_values=cache).logits)
            assert cache.get_seq_length() == 9
    assert distance(*logits) <= 1e-4 and len(calls) == 3


def test_a_cache_that_both_fill(calls):
    """Started by bertgen, gone on with by transformers' modules, and back."""
    (theirs, ours), (given, labels) = twins(), batch()
    ids, logits = labels.clamp(min=0), []
    with torch.no_grad():
        for model in (theirs, ours):
            first = model(**given, decoder_input_ids=ids)
            more = dict(
                encoder_outputs=(first.encoder_last_hidden_state,), attention_mask=given["attention_mask"],
                past_key_values=first.past_key_values,
            )  # fmt: skip
            model(**more, decoder_input_ids=ids[:, :2], output_hidden_states=True)
            logits.append(model(**more, decoder_input_ids=ids[:, :1]).logits)
    assert distance(*logits) <= 1e-4 and len(calls) == 2


@pytest.mark.parametrize("beams", [1, 4])
def test_our_cache_in_transformers_own_model_and_loop(beams):
    model, (given, _) = pair(), batch()
    expected, got = (
        model.generate(**given, max_new_tokens=12, num_beams=beams, **more)
        for more in ({}, dict(past_key_values=bertgen.PagedCache(model.config)))
    )
    assert torch.equal(got, expected)
    with pytest.raises(bertgen.UnsupportedError, match="does not shrink"):
        bertgen.PagedCache(model.config).crop(-1)


def test_the_class_of_an_accelerated_model_makes_models_that_work(tmp_path, calls):
    model, (given, labels) = bertgen.accelerate(pair()), batch()
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert torch.equal(*(m.generate(**given, max_new_tokens=9) for m in (model, loaded)))
    assert bertgen.explain(loaded).models[""] == "EncoderDecoderModel"
    made = type(model)(model.config)
    assert made(**given, labels=labels).loss.isfinite() and calls == ["generation"] * 2 + ["forward"]
    assert type(bertgen.restore(type(model)(model.config))) is EncoderDecoderModel


def test_a_wrapped_constructor_is_no_obstacle(monkeypatch, calls):
    """It is not called while a model runs: deepspeed's zero.Init wraps those of all modules."""
    for cls in (EncoderDecoderModel, transformers.BertGenerationEncoder, transformers.BertGenerationDecoder):
        make = cls.__init__
        monkeypatch.setattr(cls, "__init__", lambda self, *args, make=make, **options: make(self, *args, **options))
    model, (given, _) = bertgen.accelerate(pair()), batch()
    model.generate(**given, max_new_tokens=3)
    assert calls == ["generation"] and not model._bertgen.detours


def test_halves_that_were_joined_are_no_obstacle(calls):
    """They get a copy of their configuration, which is another object than that of their layers."""
    apart = pair()
    model = EncoderDecoderModel(encoder=apart.encoder, decoder=apart.decoder).eval()
    model.config.decoder_start_token_id, model.config.pad_token_id = START, 0
    given, labels = batch()
    bertgen.accelerate(model)(**given, labels=labels)
    assert calls == ["forward"] and not model._bertgen.detours


def test_recording_leaves_no_model_in_transformers_registry():
    """Of the two kinds of registry, a plain dict (5.16) would hold the model as a key, and find nothing by its name."""
    registry = transformers.utils.output_capturing._CAN_RECORD_REGISTRY
    model, (given, labels) = bertgen.accelerate(pair()), batch()
    model(**given, decoder_input_ids=labels.clamp(min=0), output_hidden_states=True)
    assert str(type(model.decoder)) in registry and all(isinstance(key, str) for key in registry)


@pytest.mark.parametrize("options", [dict(output_attentions=True), dict(output_hidden_states=True)], ids=str)
def test_outputs_of_transformers_own_modules(options, calls):
    (theirs, ours), (given, labels) = twins(), batch()
    expected, got = (model(**given, decoder_input_ids=labels.clamp(min=0), **options) for model in (theirs, ours))
    assert not calls
    for name in ("decoder_hidden_states", "encoder_hidden_states"):
        if expected.get(name) is not None:
            assert all(torch.equal(a, b) for a, b in zip(got[name], expected[name], strict=True))
    assert set(got.keys()) == set(expected.keys())
    ours(**given, decoder_input_ids=labels.clamp(min=0))  # the idle hooks of transformers are no obstacle
    assert calls == ["forward"]


def test_a_tuple_and_a_mask_of_four_dimensions(calls):
    (theirs, ours), (given, labels) = twins(), batch()
    given["decoder_input_ids"] = labels.clamp(min=0)
    expected, got = (model(**given, return_dict=False) for model in (theirs, ours))
    assert isinstance(got, tuple) and len(got) == len(expected) and distance(got[0], expected[0]) <= 1e-4
    del calls[:]
    given["decoder_attention_mask"] = torch.ones(3, 1, 6, 6, dtype=torch.bool).tril()
    assert distance(*(model(**given).logits for model in (theirs, ours))) <= 1e-4
    assert "forward: decoder_attention_mask is no tensor of two dimensions" in ours._bertgen.detours


@pytest.mark.parametrize("name", ["BertGenerationEncoder", "BertGenerationDecoder"])
def test_halves_on_their_own(name, calls):
    def build():
        torch.manual_seed(0)
        config = transformers.BertGenerationConfig(**SIZES, is_decoder=name.endswith("Decoder"))
        return getattr(transformers, name)(config).eval()

    theirs, ours = build(), bertgen.accelerate(build())
    given, _ = batch()
    left = {key: t.flip(1) for key, t in given.items()}
    for some in (given, left):
        a, b = (model(**some)[0][some["attention_mask"].bool()] for model in (theirs, ours))
        assert distance(a, b) <= 1e-5
    if name.endswith("Decoder"):
        assert torch.equal(*(model.generate(**left, max_new_tokens=9, num_beams=2) for model in (theirs, ours)))
        assert distance(*(model(**given, logits_to_keep=2).logits for model in (theirs, ours))) <= 1e-5
        assert distance(*(model(**given, labels=given["input_ids"]).loss for model in (theirs, ours))) <= 1e-5
        assert "generation" in calls
    assert not ours._bertgen.detours and "forward" in calls


def test_it_is_the_same_model():
    model = pair()
    before = {name: (id(p), p.data_ptr()) for name, p in model.named_parameters()}
    keys, modules = list(model.state_dict()), [id(m) for m in model.modules()]
    assert bertgen.accelerate(model) is model and bertgen.accelerate(model) is model  # once more changes nothing
    assert isinstance(model, EncoderDecoderModel) and type(model).__name__ == "EncoderDecoderModel"
    assert list(model.state_dict()) == keys and [id(m) for m in model.modules()] == modules
    assert {name: (id(p), p.data_ptr()) for name, p in model.named_parameters()} == before
    given, labels = batch()
    bytes_before = sum(t.untyped_storage().nbytes() for t in _storages(model))
    with torch.no_grad():
        model(**given, decoder_input_ids=labels.clamp(min=0))
        model.generate(**given, max_new_tokens=4)
    assert {name: id(p) for name, p in model.named_parameters()} == {name: i for name, (i, _) in before.items()}
    assert sum(t.untyped_storage().nbytes() for t in _storages(model)) == bytes_before  # no second copy
    twin = model._bertgen.twin(model).ours
    assert {id(p) for p in twin.parameters()} <= {id(p) for p in model.parameters()}


def _storages(model):
    return {p.untyped_storage().data_ptr(): p for p in model.parameters()}.values()


def test_nothing_of_transformers_is_changed():
    before = {cls: (cls.forward, cls.generate if hasattr(cls, "generate") else None) for cls in ACCELERATED}
    other = pair()
    ours = bertgen.accelerate(pair())
    given, labels = batch()
    ours(**given, labels=labels)
    assert all(cls.forward is f and getattr(cls, "generate", None) is g for cls, (f, g) in before.items())
    assert type(other) is EncoderDecoderModel and type(other.encoder) is transformers.BertGenerationEncoder


@pytest.mark.parametrize("asked, process", [("auto", "reference"), ("reference", "auto")])
def test_the_backend_holds_while_the_model_runs(asked, process, monkeypatch):
    model, (given, labels) = bertgen.accelerate(pair(), backend=asked), batch()
    seen, run = [], forward._run
    monkeypatch.setattr(forward, "_run", lambda *args: (seen.append(ops.backend()), run(*args))[1])
    before = ops.set_backend(process)
    try:
        model(**given, labels=labels)
        assert seen == ["reference"] and ops.backend() == process
    finally:
        ops.set_backend(before)


def test_restore():
    model, (given, labels) = pair(), batch()
    expected = model(**given, labels=labels).logits
    bertgen.restore(bertgen.accelerate(model))
    assert type(model) is EncoderDecoderModel and type(model.decoder.bert) is transformers.BertGenerationEncoder
    assert not hasattr(model, "_bertgen")
    assert torch.equal(model(**given, labels=labels).logits, expected)
    assert bertgen.restore(model) is model


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_by_plain_transformers(kind, tmp_path):
    model = bertgen.accelerate(pair(kind))
    given, labels = batch(pad=model.config.pad_token_id)
    with torch.inference_mode():
        expected = model(**given, decoder_input_ids=labels.clamp(min=0)).logits
        tokens = model.generate(**given, max_new_tokens=9, num_beams=2)  # lets query, key and value share a storage
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["EncoderDecoderModel"]
    plain = EncoderDecoderModel.from_pretrained(tmp_path)
    assert type(plain) is EncoderDecoderModel
    assert distance(plain(**given, decoder_input_ids=labels.clamp(min=0)).logits.detach(), expected.clone()) <= 1e-4
    assert torch.equal(plain.generate(**given, max_new_tokens=9, num_beams=2), tokens)


@pytest.mark.parametrize("how", ["pickle", "torch.save", "deepcopy"])
def test_copies_are_accelerated(how, calls):
    model, (given, labels) = bertgen.accelerate(pair(), generate=False), batch()
    expected = model(**given, labels=labels)
    if how == "pickle":
        other = pickle.loads(pickle.dumps(model))
    elif how == "deepcopy":
        other = copy.deepcopy(model)
    else:
        torch.save(model, file := io.BytesIO())
        file.seek(0)
        other = torch.load(file, weights_only=False)
    assert type(other) is type(model) and other._bertgen.generate is False
    del calls[:]
    assert torch.equal(other(**given, labels=labels).loss, expected.loss) and calls == ["forward"]
    with torch.no_grad():  # a copy of its own
        other.decoder.lm_head.bias.add_(torch.arange(99.0))
    assert torch.equal(model(**given, labels=labels).loss, expected.loss)
    assert not torch.equal(other(**given, labels=labels).loss, expected.loss)


def test_what_changes_afterwards_holds(calls):
    """Dtype, weights, vocabulary, dropout and special ids, set on a model that is accelerated already."""
    theirs, ours = twins()
    given, labels = batch()
    ours(**given, labels=labels)
    for model in (theirs, ours):
        model.load_state_dict({k: v * 0.5 for k, v in model.state_dict().items()}, assign=True)
        model.tie_weights()
        model.decoder.resize_token_embeddings(120, mean_resizing=False)
        with torch.no_grad():
            model.decoder.bert.embeddings.word_embeddings.weight[99:] = 0.1
        model.config.decoder_start_token_id = 110
        model.double()
    expected, got = (model(**given, labels=labels) for model in (theirs, ours))
    assert got.logits.shape[-1] == 120 and got.logits.dtype == torch.float64
    assert distance(got.loss, expected.loss) <= 1e-8 and calls == ["forward"] * 2
    ours.train()
    for module in ours.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    assert distance(ours(**given, labels=labels).loss, expected.loss) > 1e-3
    ours.eval()
    assert distance(ours(**given, labels=labels).loss, expected.loss) <= 1e-8


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits(dtype):
    (theirs, ours), (given, labels) = twins(), batch()
    expected, got = (model.to(dtype)(**given, decoder_input_ids=labels.clamp(min=0)).logits for model in (theirs, ours))
    assert got.dtype == dtype and distance(got.float(), expected.float()) <= 0.02 * float(expected.abs().max())


def test_hooks_run(calls):
    """On any module: those see [batch, position, hidden], as transformers' own modules run then."""
    model, (given, labels) = bertgen.accelerate(pair()), batch()
    seen = []
    linear = model.encoder.encoder.layer[1].intermediate.dense
    handle = linear.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    model(**given, labels=labels)
    assert seen == [(3, 9, 48)] and not calls
    handle.remove()
    handle = model.encoder.encoder.layer[0].register_forward_hook(lambda module, args, output: seen.append("layer"))
    model(**given, labels=labels)
    model.generate(**given, max_new_tokens=2)
    assert seen[1:] == ["layer", "layer"]
    before = sum(model._bertgen.detours.values())
    assert before >= 2 and all("something is hung on" in reason for reason in model._bertgen.detours)
    handle.remove()
    model(**given, labels=labels)
    assert sum(model._bertgen.detours.values()) == before and calls == ["forward"]


def test_a_parametrized_layer():
    theirs, ours = twins()
    for model in (theirs, ours):
        torch.nn.utils.parametrizations.weight_norm(model.encoder.encoder.layer[0].output.dense)
    given, labels = batch()
    expected, got = (model(**given, labels=labels).loss for model in (theirs, ours))
    assert distance(got, expected) <= 1e-4 and not ours._bertgen.detours


def test_under_torch_compile_transformers_code_is_traced(calls):
    config = transformers.BertGenerationConfig(**{**SIZES, "num_hidden_layers": 1})
    model, given = transformers.BertGenerationEncoder(config).eval(), dict(input_ids=batch()[0]["input_ids"])
    with torch.no_grad():
        expected = model(**given).last_hidden_state
        compiled = torch.compile(bertgen.accelerate(model), backend="eager")
        assert distance(compiled(**given).last_hidden_state, expected) <= 1e-5 and not calls


@pytest.mark.parametrize("format", ["int4", "nf4"])
def test_four_bits(format, tmp_path):
    given, labels = batch()
    plain = pair()
    plain.save_pretrained(tmp_path / "plain")
    config = bertgen.Int4Config(format, group_size=32, skip=["output"])
    expected = bertgen.EncoderDecoderModel.from_pretrained(tmp_path / "plain", quantization_config=config)
    model = bertgen.accelerate(plain, quantization=config)
    with torch.no_grad():
        a, b = (m(**given, decoder_input_ids=labels.clamp(min=0)).logits for m in (model, expected))
    assert distance(a, b) <= 1e-5
    model.save_pretrained(tmp_path / "small")
    again = bertgen.EncoderDecoderModel.from_pretrained(tmp_path / "small")
    with torch.no_grad():
        assert distance(again(**given, decoder_input_ids=labels.clamp(min=0)).logits, b) <= 1e-5
    with pytest.raises(bertgen.UnsupportedError, match="quantized already"):
        bertgen.accelerate(model, quantization=config)
    assert bertgen.accelerate(model) is model  # once more keeps that in mind
    bertgen.restore(model)
    assert type(model.encoder.encoder.layer[0].attention.self.query) is torch.nn.Linear
    with torch.no_grad():
        assert distance(model(**given, decoder_input_ids=labels.clamp(min=0)).logits, b) <= 1e-4


def test_a_model_that_transformers_loaded_in_four_bits(tmp_path, calls):
    bertgen.register_with_transformers()
    given, labels = batch()
    pair().save_pretrained(tmp_path)
    config = bertgen.Int4Config(group_size=32, skip=["output"])
    theirs, ours = (EncoderDecoderModel.from_pretrained(tmp_path, quantization_config=config) for _ in range(2))
    bertgen.accelerate(ours)
    assert distance(*(model(**given, labels=labels).loss for model in (theirs, ours))) <= 1e-4
    tokens = [model.generate(**given, max_new_tokens=9, num_beams=2) for model in (theirs, ours)]
    assert torch.equal(*tokens) and calls == ["forward", "generation"]
    bertgen.restore(ours)  # these 4 bits are not accelerate's to undo
    assert type(ours.encoder.encoder.layer[0].attention.self.query) is bertgen.modules.Int4Linear


def test_explain():
    model, (given, labels) = bertgen.accelerate(pair()), batch()
    model(**given, labels=labels, output_attentions=True)
    report = bertgen.explain(model)
    assert report.models[""] == "EncoderDecoderModel" and report.models["decoder.bert"] == "BertGenerationEncoder"
    assert report.detours[""] == {"forward: output_attentions is asked for": 1} and not report.obstacles
    assert "attention" in dict(
        report.operators
    ) and "1 calls as transformers has it, forward: output_attentions" in str(report)
    model.encoder.encoder.layer[0].register_forward_hook(lambda *_: None)
    assert "something is hung on BertGenerationLayer" in bertgen.explain(model).obstacles[""]
    assert str(bertgen.explain(bertgen.restore(model))) == "nothing is accelerated"


def test_refusals():
    with pytest.raises(bertgen.UnsupportedError, match="nothing in a Linear can be accelerated; models that can: Bert"):
        bertgen.accelerate(torch.nn.Linear(2, 2))
    odd = pair()
    foreign = transformers.DistilBertConfig(dim=32, n_heads=4, n_layers=1, vocab_size=99)
    odd.encoder = transformers.DistilBertModel(foreign)
    odd.config.encoder = odd.encoder.config
    with pytest.raises(bertgen.UnsupportedError, match="the encoder is a DistilBertModel"):
        bertgen.accelerate(odd)
    assert type(odd.decoder) is transformers.BertGenerationDecoder  # nothing was changed
    with pytest.raises(bertgen.BackendError, match="tpu"):
        bertgen.accelerate(pair(), backend="tpu")
    with pytest.raises(bertgen.ConfigError, match="int3"):
        bertgen.accelerate(pair(), quantization="int3")
    model = bertgen.accelerate(pair())
    with pytest.raises(bertgen.InputError, match="41 tokens, but the model has 40 positions"):
        model(input_ids=torch.full((1, 41), 5), decoder_input_ids=torch.full((1, 2), 5))
    with pytest.raises(bertgen.InputError, match="holds 99"):
        model(input_ids=torch.full((1, 4), 99), decoder_input_ids=torch.full((1, 2), 5))
