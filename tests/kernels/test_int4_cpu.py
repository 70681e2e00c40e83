"""Products with 4-bit weights in the C++ extension: against their definition in float64, and to the last bit.

Those of integers too, and with all instruction sets of the processor.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from bertgen.kernels.checks import as_float64, difference
from bertgen.kernels.int4_matmul import dequantize_reference, int4_matmul_reference, round_rows
from bertgen.kernels.int4_matmul_cases import CHECK, NF4
from bertgen.kernels.int4_matmul_cpp import CPU_ROWS, dequantize_cpp, int4_matmul_cpp
from bertgen.kernels.linear import linear_cpp

from bertgen import AutoTokenizer, EncoderDecoderModel, Generator, Int4Config, ops
from bertgen.errors import BackendError
from bertgen.kernels import cpp
from bertgen.modules import Int4Linear
from bertgen.ops import extension
from tests.support import int4_products

pytestmark = pytest.mark.skipif(not extension.available(), reason=f"no C++ extension: {extension.why_not()}")

FORMS = ("symmetric", "zero", "fraction", "codebook")
LEVELS = FORMS[:3]  # that products of integers take
BEST = extension.instruction_set() if extension.available() else "portable"
HERE = extension.INSTRUCTION_SETS[: extension.INSTRUCTION_SETS.index(BEST) + 1]


@pytest.fixture(autouse=True)
def best_instruction_set():
    """A test may choose another."""
    yield
    extension.use_instruction_set(BEST)


with_each_instruction_set = pytest.mark.parametrize("instruction_set", HERE)


def arguments(rows, features, columns, group, form="symmetric", bias=True, seed=0):
    torch.manual_seed(seed)
    shape = features, columns // group
    given = {
        "x": torch.randn(rows, columns),
        "packed": torch.randint(0, 256, (features, columns // 2), dtype=torch.uint8),
        "scale": torch.randn(shape) / 8,
    }
    if form == "zero":
        given["zero"] = torch.randint(0, 16, shape).float()
    elif form == "fraction":
        given["zero"] = torch.rand(shape) * 15
    elif form == "codebook":
        given["codebook"] = torch.tensor(NF4)
    if bias:
        given["bias"] = torch.randn(features)
    return given


def weight(given):
    return tuple(given.get(name) for name in ("packed", "scale", "zero", "codebook"))


def check(*several):
    """Together, since torch may be lucky with a single number."""
    got, plain = ([f(**given).flatten() for given in several] for f in (int4_matmul_cpp, int4_matmul_reference))
    exact = [int4_matmul_reference(**as_float64(given)).flatten() for given in several]
    assert [part.shape for part in got] == [part.shape for part in plain]
    assert difference(*map(torch.cat, (got, plain, exact))) is None


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("rows", [0, 1, 2, 3, 4, 5, 16, 17, 33, 64, 200])
def test_products(rows, group, form):
    for bias in (True, False):
        check(*(arguments(rows, 1, 128, group, form, bias, seed) for seed in range(16)))
        for features, columns in ((63, 128), (64, 384), (65, 1024), (257, 128)):
            check(arguments(rows, features, columns, group, form, bias))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rows", [1, 4, 5, 129])
def test_columns_that_end_with_half_a_block(rows, form):
    for columns in (32, 96, 288, 1056):
        check(arguments(rows, 50, columns, 32, form))


@pytest.mark.parametrize("case", CHECK.cases, ids=lambda case: case.name)
def test_cases_of_the_kernel(case):
    """Through the operator: x with any strides, zero points of any dtype."""
    given = case.make(torch.float32, torch.device("cpu"))
    plain, exact = int4_matmul_reference(**given), int4_matmul_reference(**as_float64(given))
    assert difference(ops.int4_matmul(**given), plain, exact) is None


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("columns,group", [(96, 32), (256, 32), (192, 64), (1024, 128)])
def test_the_weight_is_its_definition_bit_for_bit(columns, group, form):
    given = arguments(1, 77, columns, group, form)
    given["scale"][3] = torch.tensor([0.0, -0.0, 1e-44, 3e38, math.inf, math.nan] * 6)[: columns // group]
    got, expected = dequantize_cpp(*weight(given)), dequantize_reference(*weight(given))
    assert torch.equal(got.nan_to_num(7.0).view(torch.int32), expected.nan_to_num(7.0).view(torch.int32))
    assert torch.equal(got.isnan(), expected.isnan())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("form", FORMS)
def test_scales_of_another_dtype_round_as_the_definition_does(form, dtype):
    given = arguments(5, 70, 256, 64, form)
    given["scale"] = given["scale"].to(dtype)
    plain = int4_matmul_reference(**given)
    exact = F.linear(given["x"].double(), dequantize_reference(*weight(given)).double(), given["bias"].double())
    assert difference(ops.int4_matmul(**given), plain, exact) is None


def test_zero_points_of_every_dtype():
    given = arguments(3, 33, 128, 64, "zero")
    expected = ops.int4_matmul(**given)
    for dtype in (torch.uint8, torch.int64, torch.bfloat16, torch.float64):
        assert torch.equal(ops.int4_matmul(**{**given, "zero": given["zero"].to(dtype)}), expected)


@pytest.mark.parametrize("group", int4_products.GROUPS)
@pytest.mark.parametrize("form", int4_products.FORMS)
def test_a_product_sees_the_weight_as_it_is_defined(form, group):
    """In registers, in the cache, and where torch multiplies what was unpacked."""
    before = ops.set_backend("cpp")
    try:
        for rows in (1, 2, 3, 4, 5, CPU_ROWS, CPU_ROWS + 1):
            assert int4_products.wrong(rows, form, group, torch.float32, torch.device("cpu")) == 0, rows
    finally:
        ops.set_backend(before)


@pytest.mark.parametrize("rows", [1, 3, 5, 33, CPU_ROWS])
@pytest.mark.parametrize("form", FORMS)
def test_threads_do_not_change_a_bit(rows, form):
    given, before = arguments(rows, 257, 1024, 64, form), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 16):
            torch.set_num_threads(threads)
            results.append((int4_matmul_cpp(**given), dequantize_cpp(*weight(given))))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, results[0][0]) and torch.equal(b, results[0][1]) for a, b in results)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rows", [1, 4, 5, 200])
def test_what_is_not_finite_is_where_torch_has_it(rows, form):
    given = arguments(rows, 50, 192, 64, form)
    if form in ("zero", "fraction"):
        given["zero"].fill_(0.5)
    given["packed"][:] = 0x21  # no weight is zero
    given["x"][0, 5], given["x"][-1, 100], given["scale"][7, 1] = math.inf, math.nan, math.nan
    got, plain = int4_matmul_cpp(**given), int4_matmul_reference(**given)
    assert torch.equal(got.isnan(), plain.isnan())
    assert torch.equal(got.isinf(), plain.isinf())


# Integers


@with_each_instruction_set
@pytest.mark.parametrize("form", LEVELS)
@pytest.mark.parametrize("rows", [0, 1, 2, 3, 4, 5, 7, 33, 300])
def test_products_of_integers(rows, form, instruction_set):
    """Against the definition in float64, whose x is rounded in float32."""
    extension.use_instruction_set(instruction_set)
    shapes = [(n, k, group) for group in (32, 64, 128) for n, k in ((1, 128), (7, 1152), (63, 128), (50, 384))]
    shapes += [(9, 96, 32), (9, 32, 32)]  # ends with half a block
    check(*({**arguments(rows, n, k, group, form, k > 128), "int8": True} for n, k, group in shapes))


@with_each_instruction_set
def test_integers_are_exact(instruction_set):
    """At their ends, where 16 bits would not do for a sum: with x of integers nothing is rounded."""
    extension.use_instruction_set(instruction_set)
    for nibbles, value in ((0xFF, 127.0), (0xFF, -127.0), (0x00, 127.0), (0x0F, -127.0)):
        given = arguments(5, 6, 1024, 128, bias=False)
        given |= {"packed": torch.full_like(given["packed"], nibbles), "scale": torch.ones_like(given["scale"])}
        given["x"].fill_(value)
        exact = int4_matmul_reference(**as_float64(given))
        assert torch.equal(int4_matmul_cpp(**given, int8=True).double(), exact)
        given["zero"] = torch.zeros_like(given["scale"])
        assert torch.equal(int4_matmul_cpp(**given, int8=True).double(), int4_matmul_reference(**as_float64(given)))


def test_rows_are_rounded_to_the_nearest_of_255_integers():
    torch.manual_seed(0)
    x = torch.randn(6, 64)
    x[1], x[2, 3], x[3, 3], x[4], x[5] = 0.0, math.inf, math.nan, 1e-43, 3e38
    got, largest = round_rows(x), x.abs().amax(1, keepdim=True)
    assert got[2:4].isnan().all() and torch.equal(got[1], x[1])
    fine = got[[0, 4, 5]] - x[[0, 4, 5]]
    assert (fine.abs() <= largest[[0, 4, 5]] / 254 * 1.0001 + 1e-44).all()
    levels = (got[0] / (largest[0] / 127)).round().unique()
    assert levels.abs().max() == 127 and 30 < len(levels) <= 64


@with_each_instruction_set
def test_rows_that_cannot_be_rounded(instruction_set):
    """Nothing but zeros, the smallest numbers there are, infinity and NaN: as the definition has them."""
    extension.use_instruction_set(instruction_set)
    for form in LEVELS:
        given = arguments(9, 50, 192, 64, form)
        given["x"][1] = 0.0
        given["x"][2], given["x"][3] = 1e-45, torch.linspace(-2.7e-43, 2.7e-43, 192)
        given["x"][4, 5], given["x"][5, 100], given["x"][6, 191], given["x"][7] = math.inf, math.nan, -math.inf, 2e38
        got, plain = int4_matmul_cpp(**given, int8=True), int4_matmul_reference(**given, int8=True)
        assert torch.equal(got.isnan().all(1), torch.tensor([0, 0, 0, 0, 1, 1, 1, 0, 0]).bool())
        assert torch.equal(got.isnan(), plain.isnan())
        rows = [0, 1, 2, 3, 8]
        assert (got[rows] - plain[rows]).abs().max() < 1e-4 and torch.equal(got[1], given["bias"])


@with_each_instruction_set
@pytest.mark.parametrize("form", LEVELS)
def test_a_row_of_integers_is_the_same_whatever_is_beside_it(form, instruction_set):
    extension.use_instruction_set(instruction_set)
    given, before = arguments(150, 101, 1024, 64, form), torch.get_num_threads()
    expected = int4_matmul_cpp(**given, int8=True)
    for first, last in ((0, 1), (3, 5), (7, 10), (20, 24), (30, 35), (40, 150)):
        some = {**given, "x": given["x"][first:last]}
        assert torch.equal(int4_matmul_cpp(**some, int8=True), expected[first:last])
    some = {name: t[50:60] if name in ("packed", "scale", "zero", "bias") else t for name, t in given.items()}
    assert torch.equal(int4_matmul_cpp(**some, int8=True), expected[:, 50:60])
    try:
        for threads in (2, 3, 16):
            torch.set_num_threads(threads)
            assert torch.equal(int4_matmul_cpp(**given, int8=True), expected)
    finally:
        torch.set_num_threads(before)


@with_each_instruction_set
def test_float_products_with_each_instruction_set(instruction_set):
    extension.use_instruction_set(instruction_set)
    for form in FORMS:
        for rows in (1, 2, 3, 4, 5, 7, 33):
            check(arguments(rows, 65, 384, 64, form))
            x, w, bias = torch.randn(rows, 200), torch.randn(65, 200), torch.randn(65)
            got = linear_cpp(x, w, bias)
            assert (got - F.linear(x.double(), w.double(), bias.double())).abs().max() < 1e-4
        given = arguments(1, 77, 192, 64, form)
        assert torch.equal(dequantize_cpp(*weight(given)), dequantize_reference(*weight(given)))


def test_an_instruction_set_is_chosen_by_name():
    names = extension.INSTRUCTION_SETS
    for name in HERE:
        extension.use_instruction_set(name)
        assert extension.instruction_set() == name
    for name in names[len(HERE) :]:
        with pytest.raises(BackendError, match=f"{name!r} is not available: the best of this processor is {BEST!r}"):
            extension.use_instruction_set(name)
        assert extension.instruction_set() == BEST
    with pytest.raises(BackendError, match="'sse9' is not one of portable, avx2, avx512"):
        extension.use_instruction_set("sse9")


@pytest.mark.parametrize(
    "config", [Int4Config(compute_dtype="int8"), Int4Config(symmetric=False, compute_dtype="int8")]
)
def test_a_module_of_integers(config):
    """In every dtype of its input; gradients pass the rounding."""
    torch.manual_seed(0)
    layer = Int4Linear.from_linear(torch.nn.Linear(128, 48), config)
    x = torch.randn(3, 128, requires_grad=True)
    plain, rounded = layer.to_linear(), round_rows(x.detach())
    with torch.no_grad():
        y = layer(x)
        assert torch.equal(y, ops.int4_matmul(x, layer.packed, layer.scale, layer.zero, layer.bias, None, True))
        assert 1e-4 < (y - plain(x)).abs().max() < 0.1 and (y - plain(rounded)).abs().max() < 1e-5
        for dtype in (torch.float16, torch.bfloat16, torch.float64):
            assert layer(x.to(dtype)).dtype == dtype and (layer(x.to(dtype)) - y).abs().max() < 0.05
    wanted = layer(x)
    assert torch.equal(wanted, y)
    assert torch.allclose(torch.autograd.grad(wanted.sum(), x)[0], plain.weight.sum(0).expand(3, -1), atol=1e-5)
    before = ops.set_backend("reference")
    try:
        assert (layer(x) - y).abs().max() < 1e-5
    finally:
        ops.set_backend(before)


def test_integers_have_no_codebook():
    given = arguments(3, 50, 128, 32, "codebook")
    before = ops.set_backend("cpp")
    try:
        with pytest.raises(BackendError, match="products of integers have no codebook"):
            ops.int4_matmul(**given, int8=True)
    finally:
        ops.set_backend(before)
    whole = [given.get(name) for name in ("x", "packed", "scale", "zero", "bias", "codebook")]
    with pytest.raises(RuntimeError, match="integers have no codebook"):
        cpp.int4_matmul(*whole, True, torch.empty(3, 50))


def test_no_outputs():
    given = arguments(3, 0, 64, 32)
    assert int4_matmul_cpp(**given).shape == (3, 0) and ops.int4_matmul(**given).shape == (3, 0)


def test_a_whole_weight_is_never_unpacked():
    """Of all that a call of many rows takes, its result is the largest."""
    given = arguments(CPU_ROWS + 1, 8192, 1024, 64)
    with torch.profiler.profile(profile_memory=True) as profile:
        int4_matmul_cpp(**given)
    assert 0 < max(event.self_cpu_memory_usage for event in profile.events()) <= (CPU_ROWS + 1) * 8192 * 4


def test_what_does_not_fit_is_refused():
    given = arguments(3, 50, 128, 32, "zero")
    for other, message in [
        ({"x": given["x"][:, :64].contiguous()}, "x has size 64 in dimension 1, not 128"),
        ({"packed": given["packed"][:49]}, "scale has size 50 in dimension 0, not 49"),
        ({"packed": given["packed"][:, :48].contiguous()}, "96 columns in 4 groups: a group must be 32, 64 or 128"),
        ({"packed": given["packed"].int()}, "packed has dtype int32, not uint8"),
        ({"packed": given["packed"][0]}, "packed has 1 dimensions, not 2"),
        ({"zero": given["zero"][:, :3].contiguous()}, "zero has size 3 in dimension 1, not 4"),
        ({"bias": given["bias"][:49]}, "bias has size 49 in dimension 0, not 50"),
        ({"codebook": torch.ones(15)}, "codebook has size 15 in dimension 0, not 16"),
        ({"x": given["x"][0]}, "x has 1 dimensions, not 2"),
    ]:
        whole = {**given, **other}
        with pytest.raises(RuntimeError, match=message):
            names = ("x", "packed", "scale", "zero", "bias")
            cpp.int4_matmul(*map(whole.get, names), whole.get("codebook"), False, torch.empty(3, 50))
        if "x" not in other and "bias" not in other:
            with pytest.raises(RuntimeError, match=message):
                dequantize_cpp(*weight(whole), torch.empty(50, 128))
        many = {"x": torch.randn(CPU_ROWS + 1, whole["x"].shape[-1])}
        if "x" not in other or whole["x"].shape[-1] != 128:  # where torch multiplies
            with pytest.raises(RuntimeError):
                int4_matmul_cpp(**{**whole, **many})


def test_when_it_is_taken(monkeypatch):
    given, called = arguments(3, 50, 128, 32), []
    monkeypatch.setitem(vars(ops.int4_matmul), "cpp", lambda *a, **n: called.append(1) or int4_matmul_cpp(*a, **n))
    ops.int4_matmul(**given)
    assert called == [1] and "cpp" in dict(ops.explain("cpu"))["int4_matmul"]
    leaf = given["x"].clone().requires_grad_()
    assert ops.int4_matmul(**{**given, "x": leaf}).requires_grad and called == [1]
    with torch.no_grad():
        assert torch.equal(ops.int4_matmul(**{**given, "x": leaf}), ops.int4_matmul(**given)) and called == [1] * 3
    before = ops.set_backend("cpp")
    try:
        for other, message in [
            ({"x": leaf}, "a gradient is required, and it has no backward"),
            ({"x": given["x"].bfloat16()}, "torch.bfloat16 is not float32"),
            ({"scale": given["scale"][:, :1].repeat(1, 8)}, "128 columns in 8 groups: a group is 32, 64 or 128"),
        ]:
            with pytest.raises(BackendError, match=message):
                ops.int4_matmul(**{**given, **other})
        ops.set_backend("reference")
        assert torch.equal(ops.int4_matmul(**given), int4_matmul_reference(**given)) and called == [1] * 3
    finally:
        ops.set_backend(before)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("config", [Int4Config(), Int4Config(symmetric=False), Int4Config("nf4")], ids=str)
def test_a_module_learns_through_it_and_keeps_no_floats(config, biased):
    torch.manual_seed(0)
    layer = Int4Linear.from_linear(torch.nn.Linear(128, 48, bias=biased), config)
    if biased:
        layer.bias = torch.nn.Parameter(layer.bias.detach())
    x, plain = torch.randn(2, 3, 128, requires_grad=True), layer.to_linear()
    kept, leaves = [], [x, layer.bias] if biased else [x]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = layer(x)
    assert all(t.numel() < 48 * 128 for t in kept) and any(t is layer.packed for t in kept)
    ours = torch.autograd.grad(y.square().sum(), leaves)
    theirs = torch.autograd.grad(plain(x).square().sum(), [x, plain.bias] if biased else [x])
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(ours, theirs))
    before = ops.set_backend("cpp")  # a product with a gradient is the same product
    try:
        with torch.inference_mode():
            assert torch.equal(layer(x), y)
    finally:
        ops.set_backend(before)


class Calls(dict):
    """How often the C++ product and the definition were called, by name."""

    def __init__(self, monkeypatch):
        super().__init__(cpp=0, reference=0)
        for name in self:
            monkeypatch.setitem(vars(ops.int4_matmul), name, self._counted(name, getattr(ops.int4_matmul, name)))

    def _counted(self, name, function):
        def call(*arguments, **named):
            self[name] += 1
            return function(*arguments, **named)

        return call


@pytest.fixture(scope="module")
def demo():
    return EncoderDecoderModel.from_pretrained("demo", quantization_config=Int4Config(scales="absmax", head=True))


def test_a_model_runs_through_it(demo, monkeypatch):
    """Forward, with gradients and without, `generate` and the engine: the same tokens as by the definition."""
    tokenizer = AutoTokenizer.from_pretrained("demo")
    texts = ["Where is the station?", "I have lost my key.", "She has been learning German for two years."]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    ids, mask = batch.input_ids, batch.attention_mask

    def forward():
        return demo(ids, attention_mask=mask, decoder_input_ids=ids[:, :5]).logits

    runs = {
        "forward": torch.no_grad()(forward),
        "forward with gradients": forward,
        "generate": lambda: demo.generate(ids, attention_mask=mask, num_beams=2, max_new_tokens=12),
        "engine": lambda: Generator(demo, tokenizer).generate(texts, num_beams=2, max_new_tokens=12),
    }
    expected, before = {}, ops.set_backend("reference")
    try:
        expected = {name: run() for name, run in runs.items()}
    finally:
        ops.set_backend(before)
    for name, run in runs.items():
        with monkeypatch.context() as patch:
            calls = Calls(patch)
            got = run()
        assert calls["cpp"] >= 10 and calls["reference"] == 0, (name, calls)
        if name == "engine":
            assert [output.text for output in got] == [output.text for output in expected[name]]
        elif name == "generate":
            assert torch.equal(got, expected[name])
        else:
            assert float((got - expected[name]).detach().abs().max()) <= 2e-4, name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("computed", [True, False], ids=["compute_dtype", "dtype"])
def test_16_bits_go_to_the_definition(dtype, computed, monkeypatch):
    layer = Int4Linear.from_linear(torch.nn.Linear(128, 48), Int4Config(compute_dtype=dtype if computed else None))
    x = torch.randn(3, 128)
    if not computed:
        layer, x = layer.to(dtype), x.to(dtype)
    calls = Calls(monkeypatch)
    with torch.no_grad():
        y = layer(x)
    assert calls == {"cpp": 0, "reference": 1} and y.dtype == x.dtype
    exact = F.linear(x.double(), layer.to_linear().weight.double(), layer.bias.double())
    assert float((y - exact).detach().abs().max()) <= 0.05


def test_float32_products_of_16_bit_scales_round_as_the_definition_does(monkeypatch):
    """What a BitsAndBytesConfig asks for by default of a model in 16 bits."""
    layer = Int4Linear.from_linear(torch.nn.Linear(128, 48).half(), Int4Config("fp4", compute_dtype="float32"))
    calls, x = Calls(monkeypatch), torch.randn(3, 128).half()
    with torch.no_grad():
        y = layer(x)
    assert calls == {"cpp": 1, "reference": 0} and y.dtype == torch.float16
    exact = F.linear(x.double(), layer.to_linear().weight.double(), layer.bias.double())
    assert float((y - exact).detach().abs().max()) <= 2e-3


def test_several_weights_that_do_not_fit_are_refused():
    given = arguments(3, 50, 128, 32, "zero")
    packed, scale, zero, bias = ([given[name]] * 2 for name in ("packed", "scale", "zero", "bias"))
    fewer = [given["packed"], given["packed"][:49]], [given["scale"], given["scale"][:49]]
    for lists, message in [
        (([], [], [], []), "there is no weight"),
        ((packed, scale[:1], zero, bias), "2 weights with 1 scales"),
        ((packed, scale, zero[:1], bias), "lists of 2 and of 1 tensors"),
        ((*fewer, [], []), "packed has size 49 in dimension 0, not 50"),
        ((packed, scale, zero, [bias[0], bias[0][:49]]), "bias has size 49 in dimension 0, not 50"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            cpp.int4_matmuls(given["x"], *lists, None, False, torch.empty(3, 100))
    with pytest.raises(RuntimeError, match="integers have no codebook"):
        cpp.int4_matmuls(given["x"], packed, scale, zero, bias, torch.ones(16), True, torch.empty(3, 100))
