"""A decode step in one call: what it computes, when it is taken, and what it refuses."""

from __future__ import annotations

import copy

import pytest
import torch
from bertgen.kernels.linear import few_rows
from torch import nn

import bertgen.layers.stack
import bertgen.model.bert_generation
from bertgen import EncoderDecoderConfig, EncoderDecoderModel, Int4Config, ops
from bertgen.layers.add_norm import AddNorm
from bertgen.layers.linear import Int4Linear
from bertgen.ops import extension
from bertgen.ops.step_layout import LayerParts, LayerPools, StepArguments, StepTables

pytestmark = pytest.mark.skipif(not extension.available(), reason=f"no C++ extension: {extension.why_not()}")

STEPS = 7
IDS = torch.tensor([[5, 6, 7, 8, 9], [8, 9, 10, 0, 0], [5, 0, 0, 0, 0]])


def make(kind="bert-generation", hidden=64, heads=4, inner=96, **options) -> EncoderDecoderModel:
    half = dict(
        model_type=kind, vocab_size=120, hidden_size=hidden, num_hidden_layers=2, num_attention_heads=heads,
        intermediate_size=inner, initializer_range=0.1, max_position_embeddings=64, layer_norm_eps=1e-6, **options,
    )  # fmt: skip
    if kind == "roberta":
        half["pad_token_id"] = 1
    decoder = dict(half, is_decoder=True, add_cross_attention=True)
    torch.manual_seed(0)
    config = EncoderDecoderConfig(encoder=half, decoder=decoder, pad_token_id=0, decoder_start_token_id=2)
    return EncoderDecoderModel(config).eval()


@pytest.fixture
def taken(monkeypatch):
    """For each stack, and each step of a decoder in 16 bits, that ran since: whether it was one call."""
    calls: list[bool] = []
    function = bertgen.layers.stack.decoder_step

    def watched(*arguments):
        y = function(*arguments)
        calls.append(y is not None)
        return y

    monkeypatch.setattr(bertgen.layers.stack, "decoder_step", watched)
    monkeypatch.setattr(bertgen.model.bert_generation, "decoder_step", watched)
    return calls


def logits(model, ids=IDS, **options):
    """Logits of every step [steps, rows, vocabulary]; no row ends."""
    call = dict(
        max_new_tokens=STEPS, min_new_tokens=STEPS, return_dict_in_generate=True, output_logits=True, eos_token_id=1
    )
    return torch.stack(model.generate(ids, attention_mask=(ids != 0).long(), **call, **options).logits)


def by_modules(function, *arguments, **named):
    """What the definitions say."""
    before = ops.set_backend("reference")
    try:
        return function(*arguments, **named)
    finally:
        ops.set_backend(before)


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize(
    "shape",
    [
        dict(),
        dict(kind="bert"),
        dict(kind="roberta"),
        dict(hidden=42, heads=3, inner=37),  # nothing is a multiple of a vector
        dict(hidden=256, heads=2, inner=320),
        dict(hidden_act="gelu_python"),
    ],
    ids=str,
)
def test_computes_what_the_modules_compute(shape, beams, taken):
    model = make(**shape)
    expected = by_modules(logits, model, num_beams=beams)
    assert not any(taken)
    taken.clear()
    got = logits(model, num_beams=beams)
    assert sum(taken) == STEPS - 1  # the first step computes the keys of the sources
    exact = by_modules(logits, copy.deepcopy(model).double(), num_beams=beams)
    assert (got - exact).abs().max() < 2e-5
    assert (got - exact).abs().max() <= 3 * (expected - exact).abs().max() + 1e-6


def in_4_bits(model, config):
    for layer in model.decoder.body.encoder.layer:
        for name, part in list(layer.named_modules()):
            if type(part) is nn.Linear:
                layer.set_submodule(name, Int4Linear.from_linear(part, config))


@pytest.mark.parametrize("config", [Int4Config(group_size=32), Int4Config(symmetric=False), Int4Config("nf4")], ids=str)
def test_weights_in_4_bits(config, taken):
    model = make(inner=128)
    in_4_bits(model, config)
    expected, got = by_modules(logits, model), logits(model)
    assert sum(taken) == STEPS - 1
    assert (got - expected).abs().max() < 2e-5
    model.decoder.body.encoder.layer[0].attention.output.dense = Int4Linear.from_linear(
        nn.Linear(64, 64), Int4Config("fp4")
    )
    taken.clear()
    expected, got = by_modules(logits, model), logits(model)
    assert not any(taken)  # two formats in one stack
    assert (got - expected).abs().max() < 2e-5


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("symmetric", [True, False])
def test_products_of_integers(symmetric, beams, taken, monkeypatch):
    """Those of the modules, but where the last bit of a norm or of GELU turns an integer."""
    model = make(inner=128)
    in_4_bits(model, Int4Config(symmetric=symmetric, compute_dtype="int8"))
    got = logits(model, num_beams=beams)
    assert sum(taken) == STEPS - 1
    parts = [part for part in model.modules() if type(part) is Int4Linear]
    with monkeypatch.context() as patch:  # the same operators, one after the other
        patch.setattr(bertgen.layers.stack, "decoder_step", lambda *arguments: None)
        by_one = logits(model, num_beams=beams)
    assert ((got - by_one).abs().amax(-1) < 1e-5).float().mean() > 0.8
    for part in parts:
        part.config = Int4Config(symmetric=symmetric)
    floats = logits(model, num_beams=beams)
    assert (got - floats).abs().amax(-1)[1:].min() > 1e-3
    parts[-1].config = Int4Config(symmetric=symmetric, compute_dtype="int8")
    taken.clear()
    logits(model)
    assert not any(taken)  # products of both kinds in one stack


@pytest.mark.parametrize("prompt", [1, 3])
def test_a_decoder_without_sources(prompt, taken):
    """The tokens of a prompt are several to a row."""
    model = make().decoder
    expected, got = by_modules(logits, model, IDS[:2, :prompt]), logits(model, IDS[:2, :prompt])
    assert sum(taken) == STEPS - (prompt > 1) and (got - expected).abs().max() < 2e-5


HALVES = [torch.bfloat16, torch.float16]


def exact_logits(model, **options):
    """Those of a model in 16 bits with all arithmetic in float64."""
    return by_modules(logits, copy.deepcopy(model).double(), **options)


def fixed_scores(tokens, scores):
    """In place of the scores: those of the newest token alone, so that every dtype chooses the same tokens."""
    columns = scores.shape[1]
    table = torch.randn(columns, columns, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    return table.index_fill(1, torch.tensor([1]), -torch.inf)[tokens[:, -1]].to(scores.dtype)


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("kind", ["bert-generation", "bert", "roberta"])
@pytest.mark.parametrize("dtype", HALVES)
def test_steps_in_16_bits(dtype, kind, beams, taken):
    """Nearer to float64 than the modules, which round after each operator."""
    model = make(kind, hidden=42, heads=3, inner=37).to(dtype)
    forced = dict(num_beams=beams, num_return_sequences=beams, logits_processor=[fixed_scores])
    got = logits(model, **forced)
    assert sum(taken) == STEPS and got.dtype == torch.float32
    plain, exact = by_modules(logits, model, **forced), exact_logits(model, **forced)
    assert (got - exact)[1:].abs().mean() < (plain - exact)[1:].abs().mean()


def test_a_row_is_the_same_however_many_there_are(taken):
    model = make()
    rows = few_rows() // 3  # of the tokens of the sources there must not be more either
    alone, together = logits(model, IDS[1:2, :3]), logits(model, IDS[1:2, :3].repeat(rows, 1))
    assert sum(taken) == 2 * (STEPS - 1)
    assert all(torch.equal(alone[:, 0], together[:, row]) for row in range(rows))


def hooked(model):
    model.decoder.body.encoder.layer[1].output.register_forward_hook(lambda module, given, y: y * 1.5)


def hooked_before(model):
    model.decoder.body.encoder.layer[0].register_forward_pre_hook(lambda module, given: (given[0] * 1.5, given[1]))


def subclassed(model):
    class Louder(AddNorm):
        def forward(self, x, residual):
            return super().forward(x, residual) * 1.5

    model.decoder.body.encoder.layer[1].crossattention.output.__class__ = Louder


def wrapped(model):
    block = model.decoder.body.encoder.layer[0].intermediate
    forward = block.forward
    block.forward = lambda x: forward(x) * 1.5


def other_eps(model):
    model.decoder.body.encoder.layer[1].output.LayerNorm.eps = 1e-2


def strided_weight(model):
    norm = model.decoder.body.encoder.layer[0].output.LayerNorm
    norm.weight = nn.Parameter(torch.stack((norm.weight.detach() * 2, norm.weight.detach()), 1)[:, 0])


@pytest.mark.parametrize("change", [hooked, hooked_before, subclassed, wrapped, other_eps, strided_weight])
def test_hooks_and_other_forwards_of_a_layer_run(change, taken):
    model = make()
    before = logits(model)
    taken.clear()
    change(model)
    after = logits(model)
    assert not any(taken)
    assert (after - by_modules(logits, model)).abs().max() < 2e-5
    assert (after - before).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("options", "call"),
    [
        (dict(hidden_act="relu"), dict()),
        (dict(), dict(output_hidden_states=True)),
        (dict(), dict(output_attentions=True)),
        (dict(), dict(decoder_attention_mask=torch.tensor([[0, 1]] * 3), decoder_input_ids=IDS[:, :2])),
    ],
    ids=str,
)
def test_goes_through_the_modules(options, call, taken):
    model = make(**options)
    assert torch.equal(logits(model, **call).isfinite(), by_modules(logits, model, **call).isfinite())
    assert not any(taken)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_more_rows_than_it_is_good_for_go_through_the_modules(dtype, taken):
    logits(make().to(dtype), IDS[:1].repeat(few_rows(dtype) + 1, 1))
    assert not any(taken)
    logits(make().to(dtype), IDS[:1].repeat(few_rows(dtype), 1))
    assert any(taken)


def test_training_goes_through_the_modules(taken):
    model = make(hidden_dropout_prob=0.5).train()
    torch.manual_seed(0)
    first = logits(model)
    torch.manual_seed(1)
    assert not any(taken) and not torch.equal(first, logits(model))


@pytest.mark.parametrize("part", ["attention.output", "crossattention.output", "output"])
def test_a_block_that_trains_drops_out(part, taken):
    model = make(hidden_dropout_prob=0.5)
    model.decoder.body.encoder.layer[1].get_submodule(part).training = True
    torch.manual_seed(0)
    first = logits(model)
    assert not any(taken) and not torch.equal(first, logits(model))


@pytest.mark.parametrize("part", ["attention", "crossattention"])
def test_an_attention_that_trains_drops_out(part, taken):
    model = make(attention_probs_dropout_prob=0.5)
    model.decoder.body.encoder.layer[1].get_submodule(part).training = True
    torch.manual_seed(0)
    first = logits(model)
    assert not any(taken) and not torch.equal(first, logits(model))


def test_global_hooks_run(taken):
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, given, y: seen.append(type(module)))
    try:
        logits(make())
    finally:
        handle.remove()
    assert not any(taken) and {nn.Linear, nn.LayerNorm, nn.Embedding} <= set(seen) and len(seen) > STEPS


class Call:
    """Arguments of the operator for one layer of two heads and a history of one position."""

    def __init__(self):
        torch.manual_seed(0)

        def dense(outputs, inputs):
            return [torch.randn(outputs, inputs), torch.randn(outputs)]

        self.layer = LayerParts(
            query=dense(8, 8), key=dense(8, 8), value=dense(8, 8),
            attention_output=dense(8, 8), attention_norm=[torch.randn(8), torch.randn(8)],
            cross_query=dense(8, 8), cross_output=dense(8, 8), cross_norm=[torch.randn(8), torch.randn(8)],
            intermediate=dense(5, 8), output=[torch.randn(8, 5), torch.empty(0)],
            output_norm=[torch.randn(8), torch.randn(8)],
        )  # fmt: skip
        self.tables = StepTables(
            slots=torch.arange(3).int(), table=torch.tensor([[3], [4], [5]]).int(), lengths=torch.ones(3).int(),
            source_table=torch.tensor([[0, 1], [2, 3]]).int(), source_lengths=torch.tensor([2, 1]).int(),
            cu_rows=torch.tensor([0, 1, 3]).int(),
        )  # fmt: skip
        self.pools = LayerPools([torch.randn(6, 2, 4)], [torch.randn(6, 2, 4)])
        self.source_pools = LayerPools([torch.randn(4, 2, 4)], [torch.randn(4, 2, 4)])
        self.other = dict(x=torch.randn(3, 8), heads=2, eps=1e-5, codebook=None, int8=False)

    @property
    def arguments(self) -> StepArguments:
        lists = dict(
            parameters=[t for part in self.layer for t in part],
            pools=[*self.pools.keys, *self.pools.values],
            source_pools=[*self.source_pools.keys, *self.source_pools.values],
            tables=[table for table in self.tables if table is not None],
        )
        return StepArguments(**{**lists, **self.other})

    def run(self, **changes):
        """With other arguments, parts, tables or pools, by their names."""
        for name, value in changes.items():
            for field in ("layer", "tables", "pools"):
                if name in getattr(self, field)._fields:
                    setattr(self, field, getattr(self, field)._replace(**{name: value}))
                    break
            else:
                self.other[name] = value
        return ops.decoder_step(self.arguments)


def test_only_the_pools_and_the_result_are_written():
    call = Call()
    arguments = call.arguments
    read = [arguments.x, *arguments.parameters, *arguments.source_pools, *arguments.tables]
    before, pools = [t.clone() for t in read], [t.clone() for t in arguments.pools]
    assert call.run().isfinite().all()
    assert all(map(torch.equal, read, before))
    written = call.tables.slots.long()
    for pool, old in zip(arguments.pools, pools, strict=True):
        changed = (pool != old).flatten(1).any(1).nonzero().flatten()
        assert torch.equal(changed, written)


def test_no_sources():
    """The parts, pools and tables of cross-attention are left out together."""
    call = Call()
    with_sources = call.run()
    call.tables = StepTables(*call.tables[:3])
    call.source_pools = LayerPools([], [])
    without = call.run(cross_query=[], cross_output=[], cross_norm=[])
    assert without.isfinite().all() and not torch.equal(without, with_sources)


def test_each_part_is_read_under_its_name():
    """The operator against the layer written out in float64; every part has different numbers."""
    call = Call()
    y, layer = call.run().double(), {name: [t.double() for t in part] for name, part in call.layer._asdict().items()}
    x, tables = call.other["x"].double(), call.tables

    def dense(name, x):
        weight, bias = layer[name]
        return torch.nn.functional.linear(x, weight, bias if bias.numel() else None)

    def norm(name, x):
        return torch.nn.functional.layer_norm(x, (8,), *layer[name], call.other["eps"])

    def attend(q, keys, values):
        weights = torch.einsum("hd,thd->ht", q.view(2, 4), keys).div(2).softmax(1)
        return torch.einsum("ht,thd->hd", weights, values).flatten()

    query, key, value = (dense(name, x) for name in ("query", "key", "value"))
    attended = torch.stack(
        [
            attend(
                query[row],
                torch.stack((call.pools.keys[0][tables.table[row, 0]].double(), key[row].view(2, 4))),
                torch.stack((call.pools.values[0][tables.table[row, 0]].double(), value[row].view(2, 4))),
            )
            for row in range(3)
        ]
    )
    x = norm("attention_norm", x + dense("attention_output", attended))
    query = dense("cross_query", x)
    sources = [0, 1, 1]  # of the rows, by cu_rows
    attended = torch.stack(
        [
            attend(
                query[row],
                call.source_pools.keys[0][tables.source_table[source, : tables.source_lengths[source]]].double(),
                call.source_pools.values[0][tables.source_table[source, : tables.source_lengths[source]]].double(),
            )
            for row, source in enumerate(sources)
        ]
    )
    x = norm("cross_norm", x + dense("cross_output", attended))
    inner = torch.nn.functional.gelu(dense("intermediate", x))
    x = norm("output_norm", x + dense("output", inner))
    assert (x - y).abs().max() < 1e-4
    written = call.pools.keys[0][:3].double().view(3, 8), call.pools.values[0][:3].double().view(3, 8)
    assert (written[0] - key).abs().max() < 1e-5 and (written[1] - value).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(heads=3), "8 columns of x in 3 heads"),
        (dict(int8=True, codebook=torch.ones(16)), "integers have no codebook"),
        (dict(heads=0), "in 0 heads"),
        (dict(x=torch.randn(3, 8).double()), "x has dtype"),
        (dict(x=torch.randn(8, 3).t()), "x is not contiguous"),
        (dict(parameters=[]), "the parameters end before query"),
        (dict(output_norm=[torch.ones(8)]), "the parameters end before output_norm"),
        (dict(output_norm=[torch.ones(8)] * 3), "there are more parameters than 1 layers have"),
        (dict(query=[torch.randn(7, 8), torch.ones(8)]), "query has size 7"),
        (dict(output_norm=[torch.ones(8), torch.empty(0)]), "output_norm is empty"),
        (dict(keys=[torch.randn(6, 4, 2)]), "keys has size 4"),
        (dict(values=[]), "there are 1 pools, not 2 for each layer"),
        (dict(source_pools=[torch.randn(4, 2, 4)]), "there are 1 pools of sources, not 2"),
        (dict(source_lengths=None), "there are 5 tables, not 3 or with sources 6"),
        (dict(slots=torch.tensor([0, 1, 6]).int()), r"slots\[2\] is slot 6, the pool has 6"),
        (dict(table=torch.tensor([[3], [4], [-1]]).int()), r"table\[2, 0\] is slot -1"),
        (dict(lengths=torch.tensor([1, 2, 1]).int()), r"lengths\[1\] is 2, the table holds 1"),
        (dict(source_table=torch.tensor([[0, 1], [4, 3]]).int()), r"table\[1, 0\] is slot 4, the pool has 4"),
        (dict(cu_rows=torch.tensor([0, 1, 4]).int()), "cu_rows goes from 0 to 4, not from 0 to 3"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refuses(change, says):
    with pytest.raises(RuntimeError, match=says):
        Call().run(**change)
