"""The comparison of transformers' own tests with the list of expected differences; the tests need a checkout."""

from __future__ import annotations

import pytest

from tests.support.transformers_suite import WAYS, complaints, read_differences

PLAIN = {"a::one": "passed", "a::two": "passed", "a::three": "skipped", "b::one": "failed"}


def messages(changed, expected):
    return complaints({**PLAIN, **changed}, PLAIN, expected)


def test_equal_outcomes_give_no_messages():
    assert messages({}, {}) == []
    assert messages({"a::two": "failed"}, {"a::two": "a reason"}) == []


@pytest.mark.parametrize("outcome", ["failed", "skipped"])
def test_a_difference_that_is_not_in_the_list_is_named(outcome):
    assert messages({"a::two": outcome}, {}) == [f"is not in the list: {outcome} a::two"]
    assert messages({"b::one": "passed"}, {}) == ["is not in the list: passed b::one"]


def test_a_line_whose_tests_pass_is_named():
    assert messages({}, {"a::two": "a reason"}) == ["is in the list, and is the same: a::two"]
    assert messages({"a::two": "failed"}, {"a::*": "a reason"}) == ["is in the list, and is the same: a::one"]
    assert messages({}, {"c::*": "a reason"}) == ["is in the list, and matches no test: c::*"]


def test_skipped_tests_of_transformers_do_not_count_for_a_pattern():
    assert messages({"a::one": "failed", "a::two": "failed"}, {"a::*": "a reason"}) == []


def test_failures_of_transformers_itself_must_be_listed():
    assert complaints(PLAIN, PLAIN, {}) == ["is not in the list: failed b::one"]
    assert complaints(PLAIN, PLAIN, {"b::one": "a reason"}) == []


def test_tests_that_did_not_run_are_not_a_difference():
    assert complaints({"a::one": "passed"}, PLAIN, {}) == []


def test_the_committed_list_can_be_read():
    lists = read_differences()
    assert tuple(lists) == WAYS and all(reason for listed in lists.values() for reason in listed.values())
