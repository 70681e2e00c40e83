"""The steps of a static decoder in C++: the same state as from Python, on every kind of search and of weights."""

from __future__ import annotations

import copy
import random
import threading
import weakref
from typing import Any

import pytest
import torch
from torch import nn

from bertgen.errors import UnsupportedError
from bertgen.kernels import cpp
from bertgen.model.cpp_steps import CppSteps, why_not_cpp_steps
from bertgen.ops import extension
from bertgen.packing import Packing
from tests.support.eager_steps import EagerSteps
from tests.support.engine_requests import MARGIN, cut, outcome, without_draws
from tests.support.reference_models import PAD, START, make_model_pair
from tests.support.static_runs import (
    POSITIONS,
    StaticRun,
    assert_equal,
    live_state,
    make_groups,
    make_model,
    make_search,
    two_runs,
)

pytestmark = pytest.mark.skipif(not extension.available(), reason=f"no C++ extension: {extension.why_not()}")

HALVES = [torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


def compare(seed: int, quantized: bool, dtype: torch.dtype = torch.float32) -> tuple[int, int]:
    """Run equal requests from Python and in C++; returns the numbers of option sets and of steps."""
    r = random.Random(seed)
    model = make_model(r, quantized).to(dtype)
    groups = make_groups(r, model, r.randint(1, 3), 24)
    runs = [StaticRun(model, groups, seed) for _ in range(2)]
    assert why_not_cpp_steps(model.decoder, 24) is None
    python, cpp_steps = EagerSteps(runs[0].decoder), CppSteps(runs[1].decoder)
    for run in runs:
        run.join(0.8)
    steps = 0
    for turn in range(40):
        count, stops, live = r.choice([2, 2, 4, 8]), r.random() < 0.5, runs[1].has_live
        done = [python.run(count, stops), cpp_steps.run(count, stops)]
        # C++ knows when all have ended.
        assert done[0] == done[1] or ((not runs[1].has_live and done[1] < done[0]) and (done[1] > 0) == live)
        steps += done[1]
        assert_equal(live_state(runs[0]), live_state(runs[1]))
        assert python.flags() == cpp_steps.flags()
        expected, got = (run.leave_ended() for run in runs)
        assert [(i, unit, sorted(rows)) for i, unit, (rows, _) in expected] == [
            (i, unit, sorted(rows)) for i, unit, (rows, _) in got
        ]
        for run in runs:
            run.join(0.4 if turn < 6 else 0.0)
        if turn >= 6 and not runs[0].has_live:
            break
    return len(groups), steps


def compare_all(seeds: range, record_property) -> None:
    sets = steps = 0
    for seed in seeds:
        more = compare(seed, quantized=seed % 3 == 2)
        sets, steps = sets + more[0], steps + more[1]
    record_property("count", f"{sets} option sets, {steps} steps")


def test_equals_python_on_two_hundred_option_sets(record_property):
    compare_all(range(100), record_property)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_equals_python_on_two_thousand_option_sets(record_property):
    compare_all(range(1000, 2000), record_property)


@pytest.mark.parametrize("dtype", HALVES)
def test_equals_python_in_16_bits(dtype):
    """A step from Python is in float32 between the embeddings and the logits, too."""
    assert sum(compare(seed, False, dtype)[0] for seed in range(100, 112)) > 12


def test_parameters_of_several_dtypes_decline():
    model = make_model(random.Random(1))
    model.decoder.body.encoder.layer[0].output.LayerNorm.bfloat16()
    assert "another parameter" in why_not_cpp_steps(model.decoder, 4)
    quantized = make_model(random.Random(2), True).bfloat16()
    assert "Int4Linear is torch.bfloat16, not float32" in why_not_cpp_steps(quantized.decoder, 4)


def outputs(model: Any, ids: list[int], options: dict[str, Any]) -> list[list[int]]:
    """The outputs of one source, by C++."""
    run = StaticRun(model, [(options, 1, False)], 0)
    tokens = torch.tensor([ids])
    states = model.encoder(tokens).last_hidden_state
    if hasattr(model, "enc_to_dec_proj"):
        states = model.enc_to_dec_proj(states)
    run.join_unit(0, 0, Packing.of_mask(None, 1, len(ids), tokens.device).pack(states))
    steps = CppSteps(run.decoder)
    while run.has_live:
        steps.run(4)
    ((_, _, (rows, _)),) = run.leave_ended()
    return [cut(row, run.decoder.searches[0].search.options.end_tokens) for row in rows]


def test_gives_the_tokens_of_transformers(record_property, monkeypatch):
    monkeypatch.setattr("tests.support.reference_models.ACTIVATIONS", ["gelu"])
    same = narrow = 0
    for seed in range(4):
        pair = make_model_pair(seed)
        r, encoder, decoder = pair.random, pair.model.config.encoder, pair.model.config.decoder
        for _ in range(8):
            ids = [r.randrange(3, encoder.vocab_size) for _ in range(r.randint(1, 7))]
            options = without_draws(r, decoder.vocab_size, min(decoder.max_tokens, POSITIONS))
            left = ("encoder_", "stopping", "prefix", "logits_")
            options = {name: value for name, value in options.items() if not name.startswith(left)}
            options.setdefault("eos_token_id", [1, *r.sample(range(3, decoder.vocab_size), 3)])
            config = make_search(pair.model, options).options
            expected, margin = outcome(pair.oracle, ids, options, config)
            got = outputs(pair.model, ids, options)
            assert [row[: len(cut(row, config.end_tokens))] for row in got] == expected[: len(got)] or margin <= MARGIN
            same, narrow = same + (got == expected), narrow + (margin <= MARGIN)
    record_property("count", f"{same} the same, {narrow} of a margin up to {MARGIN}")
    assert narrow <= 2


@pytest.mark.parametrize("dtype", HALVES)
def test_16_bits_beside_transformers(dtype, monkeypatch):
    """Nearer to float64, and the same tokens but where transformers' own error decides.

    Where the tokens of a search differ first, the exact logits of both are as near to each other as that error.
    """
    monkeypatch.setattr("tests.support.reference_models.ACTIVATIONS", ["gelu"])
    errors, same = [], 0
    for seed in range(12):
        pair = make_model_pair(seed)
        oracle, model, r = pair.oracle.to(dtype), pair.model.to(dtype), pair.random
        exact = copy.deepcopy(oracle).double()
        length = min(model.config.decoder.max_tokens, POSITIONS)
        ids = torch.tensor([[r.randrange(3, model.config.encoder.vocab_size) for _ in range(r.randint(1, 7))]])
        options = dict(max_length=length, min_length=length, do_sample=False, suppress_tokens=[PAD])
        expected = oracle.generate(ids, **options)
        got = torch.tensor([[START, *outputs(model, ids[0].tolist(), dict(options, eos_token_id=1))[0]]])
        forced = dict(input_ids=ids, decoder_input_ids=expected[:, :-1])
        truth, theirs = exact(**forced).logits[0], oracle(**forced).logits[0].double()
        error = (theirs - truth).abs().max()
        ours = torch.stack(forced_logits(model, ids, expected)).double()
        errors.append([(ours - truth).abs().mean(), (theirs - truth).abs().mean()])
        same += torch.equal(expected, got)
        if not torch.equal(expected, got):
            place = int((expected != got).long().argmax())
            a, b = truth[place - 1, expected[0, place]], truth[place - 1, got[0, place]]
            assert (a - b).abs() <= 2 * error, (seed, place)
    ours, theirs = torch.tensor(errors).unbind(1)
    assert (ours < theirs).all() and ours.sum() < 0.7 * theirs.sum(), errors
    assert same >= 6


def forced_logits(model: Any, ids: torch.Tensor, tokens: torch.Tensor) -> list[torch.Tensor]:
    """The logits of each step, where these are the tokens of the output."""

    def only(history, scores):
        return torch.full_like(scores, -torch.inf).index_fill(1, tokens[0, history.shape[1]], 0.0)

    end = next(token for token in range(tokens.shape[1] + 1) if token not in tokens)
    call = dict(logits_processor=[only], return_dict_in_generate=True, output_logits=True)
    output = model.generate(ids, max_length=tokens.shape[1], eos_token_id=end, **call)
    return [step[0] for step in output.logits]


def check_declines(steps: CppSteps) -> None:
    with pytest.raises(UnsupportedError, match="steps in C\\+\\+: "):
        steps.run(2)


def test_gradients_and_autocast_decline():
    model = make_model(random.Random(1))
    run, _ = two_runs(model)
    steps = CppSteps(run.decoder)
    with torch.autocast("cpu", torch.bfloat16):
        assert "autocast" in why_not_cpp_steps(model.decoder, 4)
        check_declines(steps)
    with torch.inference_mode(False), torch.enable_grad():
        check_declines(steps)
    assert steps._current_weights() is not None


def test_reasons():
    model = make_model(random.Random(1))
    assert "rows" in why_not_cpp_steps(model.decoder, 10_000)
    assert "GELU" in why_not_cpp_steps(make_model(random.Random(1), hidden_act="relu").decoder, 4)
    assert "float64" in why_not_cpp_steps(make_model(random.Random(1)).double().decoder, 4)
    assert "Linear" in why_not_cpp_steps(torch.nn.Linear(2, 2), 4)


# Numbers that are out of range


def set_slot(run):
    run.decoder.cache.own_slots[1, 2] = 10**6


def set_table(run):
    run.decoder.cache.slot_table[1, 1] = -1


def set_source(run):
    run.decoder.cache.source_table[1, 0] = 10**6


def set_source_length(run):
    run.decoder.cache.source_lengths[1] = 100


def set_length(run):
    run.decoder.cache.lengths[1] = POSITIONS


def set_negative_length(run):
    run.decoder.cache.lengths[1] = -1


def set_token(run):
    run.decoder.tokens[1] = 10**6


def set_history(run):
    run.decoder.searches[0].lengths[1] = POSITIONS


def set_no_history(run):
    run.decoder.searches[0].lengths[1] = 0


def set_cu_rows(run):
    run.decoder.cache.cu_rows[1] = 77


BROKEN = [
    set_slot, set_table, set_source, set_source_length, set_length, set_negative_length, set_token, set_history,
    set_no_history, set_cu_rows,
]  # fmt: skip


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("change", BROKEN, ids=lambda change: change.__name__)
def test_numbers_out_of_range(change, beams, monkeypatch):
    model = make_model(random.Random(1))
    run, _ = two_runs(model, dict(num_beams=beams, eos_token_id=1))
    steps = CppSteps(run.decoder)
    steps.run(2)
    monkeypatch.setattr(run.decoder.cache, "prepare", lambda count: None)
    change(run)
    before = live_state(run)
    with pytest.raises(RuntimeError, match=r"-1|1000000|100|77|22|\b0\b"):
        steps.run(2)
    for a, b in zip(before, live_state(run), strict=True):
        assert all(torch.equal(a[name].nan_to_num(), b[name].nan_to_num()) for name in a)


def test_tensors_of_other_shapes_raise():
    model = make_model(random.Random(1))
    run, _ = two_runs(model)
    steps = CppSteps(run.decoder)
    steps.run(2)
    state = list(steps._states[0])
    for place, tensor in enumerate(state):
        for other in (tensor[:1], tensor.double() if tensor.dtype != torch.float64 else tensor.float()):
            steps._states = ((*state[:place], other, *state[place + 1 :]),)
            with pytest.raises(RuntimeError):
                steps.run(2)


def test_a_head_of_another_vocabulary_declines():
    """The ids of processors are in the vocabulary of the config: C++ writes at them without a look."""
    model = make_model(random.Random(1))
    run, _ = two_runs(model, dict(num_beams=2, eos_token_id=1, suppress_tokens=[36]))
    steps = CppSteps(run.decoder)
    steps.run(2)
    head = model.decoder.head.decoder
    model.decoder.head.decoder = nn.Linear(head.in_features, 20)
    assert "20 outputs" in why_not_cpp_steps(model.decoder, 4)
    check_declines(steps)
    model.decoder.config.vocab_size = 20
    with pytest.raises(RuntimeError, match="the head of 20"):
        steps.run(2)


class Opposite(nn.LayerNorm):
    def forward(self, x):
        return -super().forward(x)


def opposite(*arguments):
    return -arguments[-1]


def layer_of(decoder):
    return decoder.body.encoder.layer[0]


def new_parameter(decoder, undo):
    layer_of(decoder).output.dense.weight = nn.Parameter(layer_of(decoder).output.dense.weight * 2, requires_grad=False)


def new_data(decoder, undo):
    for parameter in (decoder.head.decoder.bias, decoder.body.embeddings.LayerNorm.weight):
        parameter.data = torch.linspace(-3, 3, len(parameter))


def new_values(decoder, undo):
    layer_of(decoder).intermediate.dense.weight.mul_(3)


def new_module(decoder, undo):
    dense = layer_of(decoder).crossattention.self.query
    layer_of(decoder).crossattention.self.query = nn.Linear(dense.in_features, dense.out_features).eval()


def new_class(decoder, undo):
    layer_of(decoder).output.LayerNorm.__class__ = Opposite


def other_layer(decoder, undo):
    layers = decoder.body.encoder.layer
    layers[0], layers[-1] = layers[-1], layers[0]
    layer_of(decoder).output.LayerNorm.weight.data = torch.linspace(-1, 1, decoder.config.hidden_size)


def hook(decoder, undo):
    layer_of(decoder).output.register_forward_hook(opposite)


def hook_of_a_table(decoder, undo):
    decoder.body.embeddings.word_embeddings.register_forward_hook(opposite)


def hook_of_the_dropout(decoder, undo):
    decoder.body.embeddings.dropout.register_forward_hook(opposite)


def hook_of_all(decoder, undo):
    def of_norms(module, *rest):
        return opposite(*rest) if isinstance(module, nn.LayerNorm) else None

    undo.append(nn.modules.module.register_module_forward_hook(of_norms).remove)


def own_forward(decoder, undo):
    norm = layer_of(decoder).attention.output.LayerNorm
    norm.forward = lambda x: -nn.LayerNorm.forward(norm, x)


def forward_of_a_class(decoder, undo):
    former = nn.LayerNorm.forward
    nn.LayerNorm.forward = lambda self, x: -former(self, x)
    undo.append(lambda: setattr(nn.LayerNorm, "forward", former))


def eps(decoder, undo):
    layer_of(decoder).output.LayerNorm.eps = 10.0


def activation(decoder, undo):
    layer_of(decoder).intermediate.activation = "relu"


CHANGES = [
    new_parameter, new_data, new_values, new_module, new_class, other_layer, hook, hook_of_a_table,
    hook_of_the_dropout, hook_of_all, own_forward, forward_of_a_class, eps, activation,
]  # fmt: skip


DECLINED = [
    new_class, hook, hook_of_a_table, hook_of_the_dropout, hook_of_all, own_forward, forward_of_a_class, eps,
    activation,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_model_that_changes_between_two_runs(change):
    model = make_model(random.Random(7))
    runs, (unchanged, _) = two_runs(model, dict(eos_token_id=1)), two_runs(model, dict(eos_token_id=1))
    python, cpp_steps, other = EagerSteps(runs[0].decoder), CppSteps(runs[1].decoder), CppSteps(unchanged.decoder)
    undo: list[Any] = []
    for one in (python, cpp_steps, other):
        one.run(4)
    other.run(6)
    try:
        change(model.decoder, undo)
        before = copy.deepcopy(live_state(runs[1]))
        for count in (2, 4):
            python.run(count)
            if change in DECLINED:
                check_declines(cpp_steps)
                assert_equal(before, live_state(runs[1]))
            else:
                cpp_steps.run(count)
                assert_equal(live_state(runs[0]), live_state(runs[1]))
    finally:
        for one in undo:
            one()
    histories = [run.decoder.searches[0].state["sequences"] for run in (*runs, unchanged)]
    assert torch.equal(histories[0], histories[1]) == (change not in DECLINED)
    assert not torch.equal(histories[0], histories[2])  # it does change something


def test_training_declines():
    model = make_model(random.Random(1))
    run, _ = two_runs(model)
    steps = CppSteps(run.decoder)
    steps.run(2)
    for module in (layer_of(model.decoder).output, model.decoder.body.embeddings.dropout, model.decoder):
        module.train()
        check_declines(steps)
        module.eval()
        assert steps._current_weights() is not None


def test_one_workspace_serves_one_thread_at_a_time(monkeypatch):
    model = make_model(random.Random(1), vocab_size=20_000)
    for _ in range(20):  # until the second thread comes while the first is inside
        run, _ = two_runs(model, dict(num_beams=4, eos_token_id=1, early_stopping="never"))
        steps = CppSteps(run.decoder)
        steps.run(2)
        run.decoder.cache.prepare(16)
        monkeypatch.setattr(run.decoder.cache, "prepare", lambda count: None)
        together, errors, done = threading.Barrier(2), [], []

        def work(steps=steps, together=together, errors=errors, done=done):
            with torch.inference_mode():
                together.wait()
                try:
                    done.append(steps.run(16))
                except RuntimeError as error:
                    errors.append(str(error))

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert done and len(done) + len(errors) == 2
        if errors:
            break
    assert len(errors) == 1 and "the steps run already" in errors[0]


def test_tensors_in_lists_in_a_list_live_as_long_as_the_call(monkeypatch):
    """Another thread may change the lists, or the code of a later argument, as here."""
    run, _ = two_runs(make_model(random.Random(1)))
    steps = CppSteps(run.decoder)
    calls: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr(cpp, "decode_steps", lambda *arguments: calls.append(arguments) or 0)
        steps.run(1)
    weights, plans, states, *rest = calls.pop()
    lists = [[tensor.clone() for tensor in state] for state in states]
    found = [weakref.ref(tensor) for one in lists for tensor in one]
    alive: list[bool] = []

    class Number:
        def __index__(self):
            for one in lists:
                one.clear()
            alive.extend(ref() is not None for ref in found)
            return 1

    assert cpp.decode_steps(weights, plans, lists, *rest[:-2], Number(), False) == 1
    assert alive and all(alive) and all(ref() is None for ref in found)
