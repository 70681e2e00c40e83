"""Generation: from the arguments of `generate` to a search, and what the search drives."""

from .mixin import GenerationMixin as GenerationMixin
