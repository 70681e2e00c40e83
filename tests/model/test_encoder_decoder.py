"""EncoderDecoderModel: forward, loss and gradients against transformers' eager models with the same weights."""

from __future__ import annotations

import pytest
import torch

from bertgen import (
    BertGenerationConfig,
    BertGenerationDecoder,
    BertGenerationEncoder,
    ConfigError,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    RobertaConfig,
    RobertaModel,
    UnsupportedError,
)
from tests.support.reference_models import PAD, START, make_model_pair
from tests.support.tiny_models import TINY, distance, tiny

CASES = 300


@pytest.mark.parametrize("seed", range(CASES))
def test_forward_loss_and_gradients_equal_transformers(seed):
    twins = make_model_pair(seed)
    ids, mask, labels = twins.batch()
    expected = twins.oracle(input_ids=ids, attention_mask=mask, labels=labels, output_hidden_states=True)
    got = twins.model(input_ids=ids, attention_mask=mask, labels=labels, output_hidden_states=True)

    read = (labels != -100)[..., None]
    assert distance(got.logits * read, expected.logits * read) <= 2e-5
    assert distance(got.loss, expected.loss) <= 1e-5
    for name, real in (("encoder_hidden_states", mask[..., None]), ("decoder_hidden_states", read)):
        ours, theirs = getattr(got, name), getattr(expected, name)
        assert len(ours) == len(theirs)
        assert max(distance(a * real, b * real) for a, b in zip(ours, theirs)) <= 2e-5
    assert torch.equal(got.encoder_last_hidden_state, got.encoder_hidden_states[-1])

    expected.loss.backward()
    got.loss.backward()
    gradients = {name: p.grad for name, p in twins.model.named_parameters()}
    largest = max(float(p.grad.abs().max()) for p in twins.oracle.parameters() if p.grad is not None)
    for name, p in twins.oracle.named_parameters():
        if p.grad is None:  # lm_head.bias of an untied head
            continue
        # The gradient of a key bias is zero but for rounding, so differences are judged on the model's scale too.
        assert distance(gradients[name], p.grad) <= 1e-4 * max(float(p.grad.abs().max()), 1e-2 * largest), name


@pytest.mark.parametrize("seed", range(0, 60))
def test_decoder_inputs_masks_and_cache_equal_transformers(seed):
    twins = make_model_pair(seed)
    ids, mask, labels = twins.batch()
    targets = labels.clamp_min(3)
    decoder_mask = torch.ones_like(targets)
    kind = seed % 3
    for row in range(len(targets)):
        if kind == 1:  # right-padded
            decoder_mask[row, twins.random.randint(1, targets.shape[1]) :] = 0
        elif kind == 2:  # left-padded: queries without a key to see stay undefined
            decoder_mask[row, : twins.random.randint(0, targets.shape[1] - 1)] = 0
    inputs = dict(input_ids=ids, attention_mask=mask, decoder_input_ids=targets, decoder_attention_mask=decoder_mask)
    with torch.no_grad():
        expected = twins.oracle(**inputs, labels=targets, use_cache=False)
        got = twins.model(**inputs, labels=targets, use_cache=False)
        judged = decoder_mask.cumsum(1)[..., None] > 0
        assert distance(got.logits * judged, expected.logits * judged) <= 2e-5
        if kind != 2:
            assert distance(got.loss, expected.loss) <= 1e-5

        whole = twins.model(input_ids=ids, attention_mask=mask, decoder_input_ids=targets).logits
        first = twins.model(input_ids=ids, attention_mask=mask, decoder_input_ids=targets[:, :1])
        cache, parts, past = first.past_key_values, [first.logits], 1
        while past < targets.shape[1]:
            new = targets[:, past : past + twins.random.randint(1, 3)]
            states = (first.encoder_last_hidden_state,)
            step = twins.model(
                encoder_outputs=states, attention_mask=mask, decoder_input_ids=new, past_key_values=cache
            )
            parts.append(step.logits)
            past += new.shape[1]
        assert distance(torch.cat(parts, 1), whole) <= 2e-5
        assert cache.get_seq_length() == targets.shape[1]


@pytest.mark.parametrize("keep", [0, 2, torch.tensor([0, 2])])
def test_decoder_alone_equals_transformers(keep):
    twins = make_model_pair(3)
    ids = torch.randint(3, twins.model.config.decoder.vocab_size, (2, 7))
    states = torch.randn(2, 5, twins.model.config.encoder.hidden_size)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    inputs = dict(input_ids=ids, encoder_hidden_states=states, encoder_attention_mask=mask)
    expected = twins.oracle.decoder(**inputs, logits_to_keep=keep)
    got = twins.model.decoder(**inputs, logits_to_keep=keep)
    assert distance(got.logits, expected.logits) <= 2e-5
    expected, got = (m.decoder(**inputs, labels=ids) for m in (twins.oracle, twins.model))
    assert distance(got.loss, expected.loss) <= 1e-5


def test_encoder_mask_may_have_holes_anywhere():
    model = tiny().eval()
    ids = torch.randint(3, 40, (1, 6))
    mask = torch.tensor([[0, 1, 1, 0, 1, 0]])
    got = model.encoder(ids, mask).last_hidden_state
    alone = model.encoder(ids[:, [1, 2, 4]], position_ids=torch.tensor([[1, 2, 4]])).last_hidden_state
    assert distance(got[:, [1, 2, 4]], alone) <= 1e-6
    assert not got[:, [0, 3, 5]].any()


def test_a_source_without_tokens_gives_finite_output_and_gradients():
    model = tiny()
    ids = torch.randint(3, 40, (2, 4))
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]])
    output = model(ids, mask, labels=torch.randint(3, 40, (2, 3)))
    output.loss.backward()
    assert output.logits.isfinite().all() and not output.encoder_last_hidden_state[1].any()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_outputs_work_as_attributes_keys_and_tuples():
    model = tiny().eval()
    ids = torch.randint(3, 40, (2, 4))
    output = model(ids, labels=ids, output_hidden_states=True)
    assert list(output) == [
        "loss", "logits", "decoder_hidden_states", "encoder_last_hidden_state", "encoder_hidden_states",
    ]  # fmt: skip
    assert output["logits"] is output.logits is output[1] and "past_key_values" not in output
    plain = model(ids, labels=ids, output_hidden_states=True, return_dict=False)
    assert isinstance(plain, tuple) and len(plain) == 5 and torch.equal(plain[0], output.loss)


def test_target_logits_are_those_of_forward():
    model = tiny().eval()
    ids, labels = torch.randint(3, 40, (3, 5)), torch.randint(3, 40, (3, 6))
    labels[0, 2:], labels[1, 1] = -100, -100
    logits, targets = model.target_logits(ids, None, labels)
    assert torch.equal(targets, labels[labels != -100])
    assert torch.equal(logits, model(ids, labels=labels).logits[labels != -100])


def test_dropout_acts_in_training_only_and_follows_the_seed():
    model = tiny()
    ids = torch.randint(3, 40, (2, 6))

    def run(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return model(ids, labels=ids).logits

    model.train()
    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))
    model.eval()
    assert torch.equal(run(1), run(2))


@pytest.mark.parametrize("place", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_each_dropout_probability_is_used(place):
    """A dropout left out of the module tree would pass every test in evaluation mode."""
    config = BertGenerationConfig(**TINY, **{place: 0.5, _other(place): 0.0})
    encoder = BertGenerationEncoder(config).train()
    ids = torch.randint(3, 40, (2, 6))
    assert not torch.equal(encoder(ids).last_hidden_state, encoder(ids).last_hidden_state)


@pytest.mark.parametrize("start", [START, PAD])
def test_labels_with_holes_equal_transformers(start):
    """A hole becomes padding in the decoder's input, which later positions do not see; so does a start that is pad."""
    twins = make_model_pair(11)
    twins.model.config.decoder_start_token_id = twins.oracle.config.decoder_start_token_id = start
    vocabulary = twins.model.config.decoder.vocab_size
    ids, labels = torch.randint(3, vocabulary, (3, 6)) % 37, torch.randint(3, vocabulary, (3, 7))
    labels[0, 2], labels[1, 3:5], labels[2, 5:] = -100, -100, -100
    expected, got = (m(input_ids=ids, labels=labels) for m in (twins.oracle, twins.model))
    # Position 0 of a masked start sees nothing at all; eager attention averages there, which means nothing.
    read = ((labels != -100) & (torch.arange(7) >= (start == PAD)))[..., None]
    assert distance(got.logits * read, expected.logits * read) <= 2e-5
    if start != PAD:
        assert distance(got.loss, expected.loss) <= 1e-5


def _other(place: str) -> str:
    return ({"hidden_dropout_prob", "attention_probs_dropout_prob"} - {place}).pop()


def test_parameters_can_be_trained_after_inference_mode():
    model = tiny()
    ids = torch.randint(3, 40, (2, 5))
    with torch.inference_mode():
        model(ids, labels=ids)
    model(ids, labels=ids).loss.backward()


def test_tied_halves_are_one_set_of_parameters():
    model = tiny(tie_encoder_decoder=True)
    model.tie_weights()
    untied = tiny()
    cross = sum(p.numel() for n, p in model.named_parameters() if "crossattention" in n)
    body = sum(p.numel() for p in untied.encoder.parameters())
    assert model.num_parameters() == body + cross + 40
    assert model.encoder.encoder.layer[1].output.dense.weight is model.decoder.bert.encoder.layer[1].output.dense.weight
    names = set(dict(model.state_dict()))
    assert names == set(untied.state_dict())


def test_bad_configurations_are_named():
    with pytest.raises(ConfigError, match="hiden_size.*did you mean 'hidden_size'"):
        BertGenerationConfig(hiden_size=3)
    with pytest.raises(ConfigError, match="vocab_size.*0"):
        BertGenerationConfig(vocab_size=0)
    with pytest.raises(ConfigError, match=r"hidden_dropout_prob.*1\.5"):
        BertGenerationConfig(hidden_dropout_prob=1.5)
    with pytest.raises(ConfigError, match="model_type of this class must be 'bert-generation', got 'bert'"):
        BertGenerationConfig().model_type = "bert"
    with pytest.raises(ConfigError, match="30.*4"):
        BertGenerationEncoder(BertGenerationConfig(**dict(TINY, hidden_size=30)))
    with pytest.raises(ConfigError, match="'gelo'"):
        BertGenerationEncoder(BertGenerationConfig(**TINY, hidden_act="gelo"))
    with pytest.raises(ConfigError, match="is_decoder"):
        BertGenerationDecoder(BertGenerationConfig(**TINY, add_cross_attention=True))
    with pytest.raises(UnsupportedError, match="encoder is of kind 'gpt2'.*bert-generation, bert, roberta"):
        EncoderDecoderConfig(encoder=dict(TINY, model_type="gpt2"), decoder=TINY)
    with pytest.raises(ConfigError, match="cross_attention_hidden_size 32.*32 and 64"):
        tiny(
            decoder=dict(
                TINY, hidden_size=64, cross_attention_hidden_size=32, is_decoder=True, add_cross_attention=True
            )
        )
    with pytest.raises(ConfigError, match="roberta half needs pad_token_id"):
        RobertaModel(RobertaConfig(**TINY, pad_token_id=None))
    with pytest.raises(ConfigError, match="encoder"):
        EncoderDecoderConfig(decoder=TINY)
    decoder = BertGenerationDecoder(BertGenerationConfig(**TINY))
    with pytest.raises(ConfigError, match="add_cross_attention"):
        EncoderDecoderModel(encoder=BertGenerationEncoder(BertGenerationConfig(**TINY)), decoder=decoder)
