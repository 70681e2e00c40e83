"""The name of the cache among transformers' arguments and outputs: `cache` from 5.24 on, `past_key_values` before.

Importing this module imports transformers.
"""

from __future__ import annotations

import inspect
from typing import Any

from transformers import GenerationMixin

OLD_NAME = "past_key_values"
NAME = "cache" if "cache" in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters else OLD_NAME


def with_current_name(arguments: dict[str, Any]) -> dict[str, Any]:
    """`arguments`, with a cache that has its old name under the name in the installed transformers.

    With both names in one call both stay, for transformers to handle.
    """
    if NAME in arguments:
        return arguments
    return {NAME if name == OLD_NAME else name: value for name, value in arguments.items()}
