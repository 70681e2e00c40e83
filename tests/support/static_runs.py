"""Random searches over static decoders, for the comparison of two ways to run their steps."""

from __future__ import annotations

import random
from typing import Any

import torch

from bertgen import EncoderDecoderConfig, EncoderDecoderModel, GenerationConfig, Int4Config
from bertgen.cache.cache import Cache
from bertgen.decoding import KeyedRng, resolve_generation_config, search_class
from bertgen.decoding.beam_search import LIVE_THRESHOLD
from bertgen.decoding.logits_processors import build_logits_processors
from bertgen.decoding.search import Search
from bertgen.decoding.static_search import why_not_static
from bertgen.decoding.stopping_criteria import build_stopping_criteria
from bertgen.layers.linear import Int4Linear
from bertgen.model.static_decoder import StaticDecoder
from tests.support.generate_comparison import RETURNED, random_search
from tests.support.reference_models import PAD, START

POSITIONS = 22  # of the longest history
SOURCES = 7  # positions of the longest source
FORMATS = (
    Int4Config(group_size=32), Int4Config(group_size=32, symmetric=False), Int4Config("nf4", group_size=32),
    Int4Config(group_size=32, compute_dtype="int8"), Int4Config(group_size=32, symmetric=False, compute_dtype="int8"),
)  # fmt: skip


def make_model(r: random.Random, quantized: bool = False, **options: Any) -> EncoderDecoderModel:
    """A small model whose decoder has GELU, of random kind and shape; with `quantized` its decoder is in 4 bits."""
    kind = r.choice(["bert-generation", "bert", "roberta"])
    heads, width = r.choice([(1, 32), (2, 16), (4, 16)] if quantized else [(1, 8), (3, 14), (4, 16), (2, 24)])
    half = dict(
        model_type=kind, vocab_size=r.choice([37, 64, 101]), hidden_size=heads * width, num_attention_heads=heads,
        num_hidden_layers=r.choice([1, 2]), intermediate_size=r.choice([32, 64, 96]), max_position_embeddings=40,
        hidden_act=r.choice(["gelu", "gelu_python"]), layer_norm_eps=r.choice([1e-12, 1e-5]), initializer_range=0.2,
        pad_token_id=PAD,
    )  # fmt: skip
    half |= options
    if kind != "bert-generation":
        half["type_vocab_size"] = r.choice([1, 2])
    decoder = dict(half, is_decoder=True, add_cross_attention=True, tie_word_embeddings=r.random() < 0.7)
    torch.manual_seed(r.randrange(2**31))
    config = EncoderDecoderConfig(encoder=half, decoder=decoder, pad_token_id=PAD, decoder_start_token_id=START)
    model = EncoderDecoderModel(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 1:
                p += 0.1 * torch.randn_like(p)
    if quantized:
        in_4_bits(model, r.choice(FORMATS), head=r.random() < 0.5)
    return model


def in_4_bits(model: EncoderDecoderModel, config: Int4Config, head: bool) -> None:
    """Quantize the layers of the decoder, and its head."""
    parts = [model.decoder.body.encoder, *([model.decoder.head] if head else [])]
    for part in parts:
        for name, module in list(part.named_modules()):
            if type(module) is torch.nn.Linear:
                part.set_submodule(name, Int4Linear.from_linear(module, config))


def random_options(r: random.Random, vocabulary: int) -> dict[str, Any]:
    """Options of a search that may have a static form."""
    while True:
        options = random_search(r, vocabulary)
        left = (*RETURNED, "return_dict_in_generate", "logits_processor", "stopping_criteria",
                "prefix_allowed_tokens_fn", "encoder_repetition_penalty", "encoder_no_repeat_ngram_size", "top_h",
                "typical_p", "epsilon_cutoff", "eta_cutoff")  # fmt: skip
        options = {name: value for name, value in options.items() if name not in left}
        if options.get("do_sample"):
            options["num_beams"] = 1
            for name in ("length_penalty", "early_stopping"):
                options.pop(name, None)
        if options.get("max_length", 0) > POSITIONS or options.get("max_new_tokens", 0) >= POSITIONS:
            continue
        options.setdefault("eos_token_id", [1, *r.sample(range(3, vocabulary), 3)])
        return options


def make_search(model: EncoderDecoderModel, options: dict[str, Any], scored: bool = False) -> Search:
    """A search without units."""
    config = resolve_generation_config(GenerationConfig(**options).over(model.generation_config))
    start = torch.tensor([[START]])
    processors = build_logits_processors(config, model.config.decoder.vocab_size, start)
    search = search_class(config)(config, processors, build_stopping_criteria(config, None, None), KeyedRng(), scored)
    return search


class StaticRun:
    """A static decoder with random requests. Two of one seed begin equal.

    Args:
        groups: options of each search, its units, and whether it is scored.
    """

    def __init__(self, model: EncoderDecoderModel, groups: list[tuple[dict[str, Any], int, bool]], seed: int):
        self.random = random.Random(seed)
        self.model, decoder = model, model.decoder
        searches = [(make_search(model, options, scored), units) for options, units, scored in groups]
        rows = sum(search.width * units for search, units in searches)
        config = decoder.config
        units = sum(units for _, units in searches)
        self.pools = Cache(
            config.num_hidden_layers, config.num_attention_heads, config.head_dim, model.dtype, torch.device("cpu"),
            rows=2 * rows, positions=POSITIONS, source_positions=SOURCES, source_slots=units * 32,
        )  # fmt: skip
        self.decoder = StaticDecoder(decoder, self.pools, searches, POSITIONS, SOURCES)
        self.admissions: dict[tuple[int, int], Any] = {}
        self.numbers = 0

    def join(self, chance: float = 1.0) -> None:
        """Let requests run in units that are free."""
        for index, search in enumerate(self.decoder.searches):
            for unit in range(search.units):
                if search.owners[unit] is None and self.random.random() < chance:
                    self.join_unit(index, unit)

    def join_unit(self, index: int, unit: int, states: torch.Tensor | None = None) -> None:
        """Let a request run in a unit: with these states [length, hidden] of its source, or random ones and a limit."""
        search, r = self.decoder.searches[index], self.random
        number, limit = self.numbers, min(search.search.options.max_length, POSITIONS)
        self.numbers += 1
        if states is None:
            generator = torch.Generator().manual_seed(r.randrange(2**31))
            states = torch.randn(r.randint(1, SOURCES), self.model.decoder.config.hidden_size, generator=generator)
            states = states.to(self.model.dtype)
            limit = r.randint(2, limit) if r.random() < 0.3 else limit
        admission = self.pools.admit(search.width, POSITIONS, number, len(states))
        assert admission is not None
        self.pools.begin_sources([admission])
        self.model.decoder.body.encoder.write_sources(self.pools, states)
        self.decoder.join(
            index, [unit], [admission], torch.tensor([[START]]), [number],
            torch.tensor([r.randrange(2**40)]), torch.tensor([number]), torch.tensor([limit]),
        )  # fmt: skip
        self.admissions[index, unit] = admission

    def leave_ended(self) -> list[Any]:
        """Remove the units that have ended; returns their results."""
        results = []
        for index, search in enumerate(self.decoder.searches):
            ended = [unit for unit, owner in enumerate(search.owners) if owner is not None and search.over[unit]]
            if ended:
                results += [(index, *pair) for pair in zip(ended, search.results(torch.tensor(ended)))]
                self.decoder.leave(index, ended)
            for unit in ended:
                self.pools.allocator.release(self.admissions.pop((index, unit)).request)
        return results

    @property
    def has_live(self) -> bool:
        return not bool(self.decoder.over.all())


def live_state(run: StaticRun) -> list[dict[str, Any]]:
    """What decides the rest of the live units, and the results of the others: of each search, by name."""
    states = []
    for search in run.decoder.searches:
        state = dict(search.state)
        live = ~state["over"]
        rows = live[:, None].expand(-1, search.width)
        kept: dict[str, Any] = dict(over=state["over"], lengths=state["lengths"])
        if "sequences" in state:
            kept |= dict(sequences=state["sequences"], log_probs=state["log_probs"])
            kept["tokens"] = state["tokens"].view(-1, 1)[rows]
        else:
            lives = rows & (state["running_scores"] > LIVE_THRESHOLD)  # the others are chosen among equals
            done = state["is_finished"]
            kept |= dict(lives=lives, is_finished=done, can_improve=state["can_improve"])
            kept |= {name: state[name][lives] for name in ("running_scores", "running_sequences")}
            scores = state["finished_scores"]
            assert bool((scores[:, :-1] >= scores[:, 1:]).all()) or bool(scores.isnan().any())
            # Two of equal scores may change places where the last bit of a logarithm differs.
            order = _order(state["finished_sequences"].flatten(0, 1), done)
            for name in ("finished_scores", "finished_sequences", "finished_lengths"):
                kept[name] = state[name].flatten(0, 1)[order]
            kept["tokens"] = state["tokens"].view(-1, search.width)[lives]
        states.append({name: value.clone() for name, value in kept.items()})
    return states


def _order(sequences: torch.Tensor, done: torch.Tensor) -> list[int]:
    """Indices of the finished hypotheses, those of each unit in the order of their tokens."""
    found = done.flatten().nonzero().flatten().tolist()
    return sorted(found, key=lambda i: (i // done.shape[1], sequences[i].tolist()))


def make_groups(r: random.Random, model: EncoderDecoderModel, count: int, rows: int) -> list[tuple]:
    """Options of some searches that have a static form, of at most so many rows together."""
    groups: list[tuple[dict[str, Any], int, bool]] = []
    while len(groups) < count:
        options = random_options(r, model.config.decoder.vocab_size)
        if why_not_static(make_search(model, options)) is not None:
            continue
        width = options["num_beams"]
        units = r.randint(1, max(1, min(4, rows // count // width)))
        groups.append((options, units, r.random() < 0.5 and width == 1))
    return groups


def two_runs(
    model: EncoderDecoderModel, options: dict[str, Any] | None = None, units: int = 3
) -> tuple[StaticRun, StaticRun]:
    """Two equal runs of one search, all of whose units have joined."""
    groups = [(dict(options or dict(num_beams=2, eos_token_id=1), max_length=POSITIONS), units, False)]
    runs = StaticRun(model, groups, 3), StaticRun(model, groups, 3)
    for run in runs:
        run.join()
    return runs


def assert_equal(expected: list[dict], got: list[dict]) -> None:
    """Equal tokens, lengths and flags; sums of logarithms up to the order of additions."""
    for search, (a, b) in enumerate(zip(expected, got, strict=True)):
        assert a.keys() == b.keys()
        for name, value in a.items():
            if value.is_floating_point():
                torch.testing.assert_close(b[name], value, rtol=1e-5, atol=1e-5, equal_nan=True)
            else:
                assert torch.equal(value, b[name]), (search, name, value, b[name])
