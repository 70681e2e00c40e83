"""Calls of BertTokenizer and RobertaTokenizer against transformers': pairs, truncation, padding, threads, errors."""

import itertools
import threading

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from bertgen.errors import ConfigError, InputError, UnsupportedError
from bertgen.tokenizer.base import NO_LIMIT
from tests.support.fast_tokenizers import (
    corpus,
    near_text,
)
from tests.support.tokenizer_checks import assert_same, call_inputs, call_options, fuzz

# -- calls ------------------------------------------------------------------------------------------------------------

TEXT = near_text()
OPTIONS = call_options([4, 5, 6, 8, 9, 30])
INPUTS = call_inputs(TEXT, TEXT | st.tuples(TEXT, TEXT))


@pytest.fixture(scope="module")
def callers(kind):
    return kind.load()


def called(tokenizer, inputs, options):
    """The result of a call, or its exception: a ValueError too if rows are missing because of their lengths."""
    try:
        actual = tokenizer(*inputs, **options)
    except Exception as error:
        return error
    if options.get("return_tensors") and any(value.dtype == object or 0 in value.shape for value in actual.values()):
        rows = tokenizer(*inputs, **{name: value for name, value in options.items() if name != "return_tensors"})
        if any(len({len(row) for row in value}) > 1 for value in rows.values() if value and isinstance(value[0], list)):
            return ValueError("rows of different lengths")
    return actual


@settings(fuzz, max_examples=150)
@given(inputs=INPUTS, options=OPTIONS, side=st.sampled_from(["left", "right"]), limit=st.sampled_from([None, 6]))
@pytest.mark.filterwarnings("ignore:truncation without max_length", "ignore:`max_length` is ignored")
def test_calls_as_transformers(callers, inputs, options, side, limit):
    ours, theirs = callers
    for tokenizer in callers:
        tokenizer.truncation_side, tokenizer.model_max_length = side, limit or NO_LIMIT
    actual, expected = called(ours, inputs, options), called(theirs, inputs, options)
    if isinstance(expected, Exception):
        assert isinstance(actual, ValueError), f"{actual!r} instead of {expected!r}"
        return
    if isinstance(actual, ConfigError) and "special tokens" in str(actual):  # see the test after the next
        return
    assert list(actual) == list(expected)
    for key in expected:
        assert_same(actual[key], expected[key])


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("truncation", ["longest_first", "only_first", "only_second"])
def test_pairs_are_truncated_as_transformers_does(callers, truncation, side, special):
    ours, theirs = callers
    for tokenizer in callers:
        tokenizer.truncation_side, tokenizer.model_max_length = side, NO_LIMIT
    texts = ["", "the", "the station", "a b c d e"]
    for first, second in itertools.product(texts, [*texts, None]):
        count = ours.num_special_tokens_to_add(bool(second)) if special else 1
        for limit in range(count, len(ours.encode(first, second)) + 1):
            options = dict(truncation=truncation, max_length=limit, add_special_tokens=special)
            actual, expected = called(ours, (first, second), options), called(theirs, (first, second), options)
            if isinstance(expected, Exception):
                assert isinstance(actual, InputError) and "truncation" in str(actual)
            else:
                assert dict(actual) == dict(expected)


def test_a_limit_below_the_special_tokens(fresh_fast):
    """transformers returns the whole text there, however long it is."""
    with pytest.raises(ConfigError, match="max_length 1 is less than the 2 special tokens"):
        fresh_fast("the station", max_length=1)
    with pytest.raises(ConfigError, match="max_length 2 is less than"):
        fresh_fast(["a", ("a", "b")], truncation=True, max_length=2)
    assert fresh_fast("the", max_length=1, add_special_tokens=False).input_ids == fresh_fast.encode("the")[1:2]


@pytest.mark.filterwarnings("ignore:`max_length` is ignored")
def test_corners_of_a_call(both):
    ours, theirs = both
    for inputs, options in (
        (("",), {}),
        (("",), dict(padding="max_length", max_length=4)),
        (("",), dict(padding="max_length", max_length=4, add_special_tokens=False)),
        (("",), dict(return_tensors="pt", add_special_tokens=False)),
        (("a", ""), dict(return_token_type_ids=True)),
        (([("a", "")],), dict(return_token_type_ids=True)),
        ((["a"], [""]), dict(return_token_type_ids=True)),
        (("a b c d",), dict(max_length=3)),
        (("a b c d",), dict(max_length=3, padding=True)),
        (("a b c d",), dict(max_length=9, padding="max_length")),
        (("a", "b"), dict(return_token_type_ids=True, add_special_tokens=False)),
        ((None, None, "a b"), {}),
        (("a", None, "b"), dict(add_special_tokens=False)),
        ((("a", "b"),), {}),
        (("a b",), dict(truncation=transformers.tokenization_utils_base.TruncationStrategy.ONLY_FIRST, max_length=3)),
        (("a b",), dict(padding=transformers.utils.PaddingStrategy.MAX_LENGTH, max_length=6)),
    ):
        actual, expected = ours(*inputs, **options), theirs(*inputs, **options)
        assert list(actual) == list(expected)
        for key in expected:
            assert_same(actual[key], expected[key])


def test_the_collator_of_transformers_takes_it(both):
    batches = []
    for tokenizer in both:
        features = [dict(tokenizer(a, text_target=b)) for a, b in (("the station", "a"), ("the", "b c d"))]
        batches.append(transformers.DataCollatorForSeq2Seq(tokenizer, return_tensors="pt")(features))
    assert batches[0].keys() == batches[1].keys()
    for key in batches[0]:
        assert_same(batches[0][key], batches[1][key])


def test_threads_share_one_tokenizer(fresh_fast):
    """A call leaves nothing in the tokenizer; in transformers the truncation of one thread is that of another."""
    texts = corpus()[:50]
    expected = {limit: fresh_fast(texts, truncation=True, max_length=limit, padding=True) for limit in range(3, 9)}
    wrong = []

    def work(limit):
        for _ in range(20):
            if fresh_fast(texts, truncation=True, max_length=limit, padding=True) != expected[limit]:
                wrong.append(limit)

    threads = [threading.Thread(target=work, args=(limit,)) for limit in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# -- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda t: t(None), InputError, "NoneType"),
        (lambda t: t([]), InputError, "no text"),
        (lambda t: t(["a", None]), InputError, "text 1 must be a str, got NoneType"),
        (lambda t: t(["a"], "b"), InputError, "list of 1"),
        (lambda t: t("a\ud800b"), InputError, r"text 0 .*U\+D800 at position 1"),
        (lambda t: t("a", "\ud800"), InputError, r"U\+D800 at position 0"),
        (lambda t: t.encode_batch(["a"] * 70 + ["\udfff"]), InputError, r"text 70 .*U\+DFFF"),
        (lambda t: t.encode_batch("the"), InputError, "list of texts, got str"),
        (lambda t: t.encode_batch(["a", ("b", "c")]), InputError, "text 1 must be a str, got tuple"),
        (lambda t: t.tokenize(b"the"), InputError, "bytes"),
        (lambda t: t.tokenize("\ud800"), InputError, "position 0"),
        (lambda t: t.convert_tokens_to_ids(None), InputError, "NoneType"),
        (lambda t: t.decode([5, 400]), InputError, "id 400 at position 1 .* 400 tokens"),
        (lambda t: t.batch_decode([[5], [-1]]), InputError, "id -1 at position 0"),
        (lambda t: t.decode([10**30]), InputError, "outside the vocabulary"),
        (lambda t: t.decode(["a"]), InputError, "'a' at position 0 is no integer"),
        (lambda t: t.decode([5, 6.0]), InputError, "6.0 at position 1 is no integer"),
        (lambda t: t.decode([5.0, 5]), InputError, "5.0 at position 0 is no integer"),
        (lambda t: t.decode(None), InputError, "None"),
        (lambda t: t.decode([[5, [6]]]), InputError, "position 1 is no integer"),
        (lambda t: t.convert_ids_to_tokens([1, 400]), InputError, "id 400 at position 1"),
        (lambda t: t(["a", "the station a"], return_tensors="pt"), InputError, "padding=True"),
        (lambda t: t("a", padding="short"), ConfigError, "padding .*'short'"),
        (lambda t: t("a b c", "d e", truncation="only_second", max_length=5), InputError, "longest_first"),
        (
            lambda t: t(["a", "a b c"], truncation="only_second", max_length=4),
            InputError,
            "text 1 has . tokens too many",
        ),
        (lambda t: t.add_tokens([5]), ConfigError, "5"),
        (lambda t: t.add_tokens(["\ud800"]), ConfigError, "Unicode"),
        (lambda t: t.add_special_tokens({"paddingtoken": "x"}), ConfigError, "paddingtoken"),
    ],
)
def test_bad_calls(fresh_fast, call, error, message):
    with pytest.raises(error, match=message):
        call(fresh_fast)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(dolowercase=True, foo=1), ConfigError, "Tokenizer has no option 'dolowercase', 'foo'"),
        (dict(padding_side="top"), ConfigError, "'top'"),
        (dict(model_max_length=0), ConfigError, "model_max_length"),
        (dict(pad_token=5), ConfigError, "5"),
        (dict(extra_special_tokens={"image": "<i>"}), UnsupportedError, "extra_special_tokens"),
        (dict(added_tokens_decoder={"x": "y"}), ConfigError, "added_tokens_decoder"),
        # Unlike transformers, which gives it the id 400.
        (dict(added_tokens_decoder={"402": "[A]"}), ConfigError, r"'\[A\]' the id 402, but it must be 400"),
        (dict(added_tokens_decoder={"7": "[A]"}), ConfigError, "the id 7"),
    ],
)
def test_bad_options(kind, options, error, message):
    with pytest.raises(error, match=message):
        kind.ours.from_pretrained(kind.folder, **options)
