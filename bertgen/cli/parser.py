"""What becomes of a command line that cannot be read, and of the names of options in errors."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from .codes import BAD_INPUT

# What options are called in Python, where that is not how they are typed.
_ALIASES = {"num_return_sequences": "n_best", "truncation": "truncate"}
_ADVICE = r"\b({name}) (?=replaces it|throws away|cuts longer|continues it)"
_CHOICES = re.compile(r"invalid choice: '(.*?)' \(choose from (.*)\)")


class Parser(argparse.ArgumentParser):
    """Says the reason first, what may have been meant, and where all options are listed."""

    def parse_known_args(self, *arguments: Any, **named: Any) -> Any:
        """As the base class; an argument that nobody knows is an error of the command it was given to."""
        found, unknown = super().parse_known_args(*arguments, **named)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(map(str, unknown))}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        """End the process."""
        options = [option for option in self._option_string_actions if option.startswith("--")]
        words = [(word.partition("=")[0], options) for word in re.findall(r"(?<!\S)--?\w[\w-]*", message)]
        if match := _CHOICES.search(message):
            words = [(match[1], [choice.strip(" '\"") for choice in match[2].split(",")])]
        elif not message.startswith("unrecognized"):
            words = []
        meant = [near[0] for word, known in words if (near := difflib.get_close_matches(word, known, 1))]
        hint = f"; did you mean {' '.join(meant)}?" if meant else ""
        usage = f"usage: {self.prog} [OPTIONS] ...; `{self.prog} --help` lists them"
        self.exit(BAD_INPUT, f"{self.prog}: error: {message}{hint}\n{usage}\n")

    def flags(self) -> dict[str, str]:
        """The options of this command by their names in Python."""
        found = {action.dest: action.option_strings[0] for action in self._actions if action.option_strings}
        return found | {name: found[typed] for name, typed in _ALIASES.items() if typed in found}


def as_typed(message: str, flags: Mapping[str, str]) -> str:
    """A message of the library with the names of its options as they are typed: `--num-beams` for num_beams.

    Args:
        flags: name in Python -> flag. A name that may be an English word is one where it stands like an option: before
            `=`, "must be" or what it does.
    """
    for name, flag in flags.items():
        before, behind = r"(?<![\w/.'\"-])", r"(?![\w/'\"-]|\.\w)"
        message = re.sub(rf"{before}{name}=(?:True\b|(?=\S))", lambda m: flag + " " * m[0].endswith("="), message)
        message = re.sub(rf"^{name} (?=must be)", f"{flag} ", message)
        message = re.sub(_ADVICE.format(name=name), f"{flag} ", message)
        message = re.sub(rf"(?<=with ){name}$", flag, message)
        if "_" in name:
            message = re.sub(f"{before}{name}{behind}", flag, message)
    return message
