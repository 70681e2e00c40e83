"""Checks of plain values: the values each accepts, the result, and the error for other values."""

import enum
import inspect
import math
import re

import numpy as np
import pytest

from bertgen import ConfigError
from bertgen.config import validators
from bertgen.config.validators import (
    check_callable,
    check_callables,
    check_choice,
    check_flag,
    check_integer,
    check_kind,
    check_mapping,
    check_name,
    check_number,
    check_size,
    check_special_ids,
    check_token_id,
    check_token_ids,
)


class Side(str, enum.Enum):
    LEFT = "left"


async def waits():
    """A coroutine function."""


# Check of (value, name) -> values it takes and what it makes of them; values it refuses and the rest of the message.
CHECKS = {
    "check_integer": (
        lambda value, name: check_integer(1, value, name, 9),
        [(1, 1), (9, 9), (np.int64(3), 3)],
        [0, 10, True, 3.0, "3", None, math.nan, [3], 10**5000],
        "must be an integer from 1 to 9",
    ),
    "check_size": (
        check_size,
        [(1, 1), (3.0, 3), (1e30, int(1e30)), (np.float32(2), 2)],
        [0, 2.5, math.inf, math.nan, True, "3", None],
        "must be an integer of at least 1",
    ),
    "check_size with a limit": (
        lambda value, name: check_size(value, name, 5),
        [(5, 5), (1.0, 1)],
        [6, 0, 1e30],
        "must be an integer from 1 to 5",
    ),
    "check_number": (
        lambda value, name: check_number(0, 1, value, name),
        [(0, 0.0), (1, 1.0), (0.5, 0.5), (np.float32(0.5), 0.5)],
        [-0.1, 1.1, math.nan, math.inf, True, "0.5", None, 10**400],
        "must be a number from 0 to 1",
    ),
    "check_number without a limit": (
        lambda value, name: check_number(0, math.inf, value, name),
        [(0, 0.0), (1e9, 1e9), (math.inf, math.inf)],
        [-1, math.nan, True, "1", None],
        "must be a number from 0",
    ),
    "check_number of any size": (
        lambda value, name: check_number(-math.inf, math.inf, value, name),
        [(-1, -1.0), (-math.inf, -math.inf), (math.inf, math.inf)],
        [math.nan, True, "1", None],
        "must be a number",
    ),
    "check_flag": (
        check_flag,
        [(True, True), (False, False), (np.bool_(True), True)],
        [0, 1, "true", None, np.array([True])],
        "must be True or False",
    ),
    "check_choice": (
        lambda value, name: check_choice(("left", "right"), value, name),
        [("left", "left"), (Side.LEFT, "left")],
        ["Left", "", None, True, 1, ["left"], np.array(["left"])],
        "must be one of left, right",
    ),
    "check_choice of integers and None": (
        lambda value, name: check_choice((1, 2, None), value, name),
        [(1, 1), (np.int64(2), 2), (None, None)],
        [True, 3, "1", 1.0],
        "must be one of 1, 2, None",
    ),
    "check_callable": (check_callable, [(None, None), (len, len)], [3, "len"], "must be a function"),
    "check_callables": (
        check_callables,
        [(None, None), ([], []), ((len, print), [len, print])],
        [len, [3], "len", {"a": len}],
        "must be a list of callables",
    ),
    "check_name": (
        check_name,
        [(None, None), ("fp16", "fp16")],
        ["", "a/b", "a\\b", "a\0", 3, b"fp16"],
        "must be a str that can be part of a file's name",
    ),
    "check_mapping": (
        check_mapping,
        [(None, None), ({}, {}), ({"a": 1}, {"a": 1})],
        [[], "a", {1: 2}],
        "must be a dict with names as its keys",
    ),
    "check_mapping of a kind": (
        lambda value, name: check_mapping(value, name, str),
        [({"a": "b"}, {"a": "b"})],
        [{"a": 1}],
        "must be a dict of str with names as its keys",
    ),
    "check_token_id": (
        check_token_id,
        [(None, None), (0, 0), (np.int32(5), 5)],
        [-1, 1.0, True, [1], 2**31],
        "must be an integer from 0 to 2147483647",
    ),
    "check_token_ids": (
        check_token_ids,
        [(None, None), (3, 3), ([3, 4], [3, 4]), ((3,), [3])],
        [-1, "3", 1.5],
        "must be an integer from 0 to 2147483647",
    ),
    "check_special_ids": (
        check_special_ids,
        [(None, None), (-1, -1), ([3, -1], [3, -1]), ([], [])],
        ["3", True, 2**31],
        "must be an integer from -2147483648 to 2147483647",
    ),
}
TAKEN = [(name, value, result) for name, (_, taken, _, _) in CHECKS.items() for value, result in taken]
REFUSED = [(name, value) for name, (_, _, refused, _) in CHECKS.items() for value in refused]


@pytest.mark.parametrize("name, value, result", TAKEN, ids=[f"{i}-{name}" for i, (name, *_) in enumerate(TAKEN)])
def test_a_value_within_the_limits_comes_back_in_its_type(name, value, result):
    checked = CHECKS[name][0](value, "the_option")
    assert checked == result and type(checked) is type(result)


@pytest.mark.parametrize("name, value", REFUSED, ids=[f"{i}-{name}" for i, (name, _) in enumerate(REFUSED)])
def test_any_other_value_is_named_with_the_option_and_the_limits(name, value):
    check, _, _, limits = CHECKS[name]
    with pytest.raises(ConfigError, match=f"^the_option {re.escape(limits)}, got .+") as error:
        check(value, "the_option")
    assert len(str(error.value)) < 400


def test_special_messages():
    with pytest.raises(ConfigError, match="^f must be a plain function, not a coroutine function, got <function waits"):
        check_callable(waits, "f")
    with pytest.raises(ConfigError, match="^ids is an empty list$"):
        check_token_ids([], "ids")
    assert check_kind("bert", "bert", "model_type") == "bert"
    for value in ("roberta", 3, None):
        with pytest.raises(ConfigError, match="^model_type of this class must be 'bert', got "):
            check_kind("bert", value, "model_type")


def test_every_check_is_in_the_table():
    functions = {name for name, _ in inspect.getmembers(validators, inspect.isfunction) if name.startswith("check_")}
    assert functions - {"check_kind"} == {name.split(" ")[0] for name in CHECKS}
