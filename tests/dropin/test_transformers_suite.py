"""The comparison of transformers' own tests with the list of expected differences; the tests need a checkout."""

from __future__ import annotations

import pytest

from tests.support.transformers_suite import WAYS, complaints, read_differences

PLAIN = {"a::one": "passed", "a::two": "passed", "a::three": "skipped", "b::one": "failed"}


def said(changed, expected):
    return complaints({**PLAIN, **changed}, PLAIN, expected)


def test_as_in_transformers_there_is_nothing_to_say():
    assert said({}, {}) == []
    assert said({"a::two": "failed"}, {"a::two": "a reason"}) == []


@pytest.mark.parametrize("outcome", ["failed", "skipped"])
def test_what_is_not_in_the_list_is_named(outcome):
    assert said({"a::two": outcome}, {}) == [f"is not in the list: {outcome} a::two"]
    assert said({"b::one": "passed"}, {}) == ["is not in the list: passed b::one"]


def test_a_line_whose_tests_pass_is_named():
    assert said({}, {"a::two": "a reason"}) == ["is in the list, and is as it is there: a::two"]
    assert said({"a::two": "failed"}, {"a::*": "a reason"}) == ["is in the list, and is as it is there: a::one"]
    assert said({}, {"c::*": "a reason"}) == ["is in the list, and no test: c::*"]


def test_what_transformers_skips_says_nothing_of_a_pattern():
    assert said({"a::one": "failed", "a::two": "failed"}, {"a::*": "a reason"}) == []


def test_failures_of_transformers_itself_are_listed_too():
    assert complaints(PLAIN, PLAIN, {}) == ["is not in the list: failed b::one"]
    assert complaints(PLAIN, PLAIN, {"b::one": "a reason"}) == []


def test_tests_that_were_not_run_are_no_difference():
    assert complaints({"a::one": "passed"}, PLAIN, {}) == []


def test_the_committed_list_can_be_read():
    lists = read_differences()
    assert tuple(lists) == WAYS and all(reason for listed in lists.values() for reason in listed.values())
