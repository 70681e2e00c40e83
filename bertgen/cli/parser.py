"""The command-line parser: its errors, and the names of options in the errors of the library."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from .exit_codes import BAD_INPUT

# Options whose name in Python is not the name of the flag.
_ALIASES = {"num_return_sequences": "n_best", "truncation": "truncate"}
_OF_PATHS = ("FILE", "FOLDER", "PATH")
_DASH_IS_STDOUT = ("stats",)
_NAMELESS = {
    "": "the name is empty",
    "-": "- names no stream here; /dev/stdin and /dev/stdout do, and ./- a file of that name",
}
_CHOICES = re.compile(r"invalid choice: '(.*?)' \(choose from (.*)\)")


class Parser(argparse.ArgumentParser):
    """Prints the reason of an error first, then a suggestion, then how to list all options."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As the base class; an unknown argument is an error of its command."""
        self._given = list(sys.argv[1:] if args is None else args)
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        for action in self._actions:
            name = getattr(namespace, action.dest, None)
            # An unset variable of a shell gives no name, and would be read as an option that was left out.
            if action.metavar in _OF_PATHS and (name == "" or (name == "-" and action.dest not in _DASH_IS_STDOUT)):
                self.error(f"argument {action.option_strings[0]}: {_NAMELESS[name]}")
        return namespace, unknown

    def error(self, message: str) -> NoReturn:
        """End the process."""
        before = next(iter(self._given), "")
        if before.startswith("-") and message.startswith("argument COMMAND"):
            message, meant = f"{before} stands before the command; options come after it", []
        elif match := _CHOICES.search(message):
            meant = _nearest(match[1], [choice.strip(" '\"") for choice in match[2].split(",")])
        else:  # also where a misspelt option leaves another one missing
            known = [option for option in self._option_string_actions if option.startswith("--")]
            typed = [word.partition("=")[0] for word in self._given if word.startswith("--")]
            meant = [near for word in typed if word not in known for near in _nearest(word, known, 0.7)]
        hint = f"; did you mean {' '.join(meant)}?" if meant else ""
        usage = f"usage: {self.prog} [OPTIONS] ...; `{self.prog} --help` lists them"
        self.exit(BAD_INPUT, f"{self.prog}: error: {message}{hint}\n{usage}\n")

    def flags(self) -> dict[str, str]:
        """The options of this command by their names in Python."""
        flags = {action.dest: action.option_strings[0] for action in self._actions if action.option_strings}
        return flags | {name: flags[typed] for name, typed in _ALIASES.items() if typed in flags}


def _nearest(word: str, known: Sequence[str], likeness: float = 0.6) -> list[str]:
    return difflib.get_close_matches(word.lower().replace("_", "-"), known, 1, likeness)


def as_typed(message: str, flags: Mapping[str, str]) -> str:
    """A message of the library with the names of its options as they are typed: `--num-beams` for num_beams.

    Args:
        flags: name in Python -> flag. A name that may be an English word is one where it stands like an option: before
            `=`, "must be" or what it does.
    """
    listed = re.compile(r"(?<=: give )\w+(?:, \w+)* or \w+")
    message = listed.sub(lambda match: re.sub(r"\w+", lambda word: flags.get(word[0], word[0]), match[0]), message)
    for name, flag in flags.items():
        start, end = rf"(?<![\w/.'\"-]){name}", r"(?![\w/'\"-]|\.\w)"  # not in a path or a quotation
        message = re.sub(rf"{start}=True\b", flag, message)
        message = re.sub(rf"{start}=(?=\S)", f"{flag} ", message)
        message = re.sub(rf"^{name}(?= must be)", flag, message)
        message = re.sub(rf"{start}(?= (?:replaces it|throws away|cuts longer|continues it))", flag, message)
        message = re.sub(rf"(?<=say which with ){name}$", flag, message)
        if "_" in name:
            message = re.sub(start + end, flag, message)
    return message
