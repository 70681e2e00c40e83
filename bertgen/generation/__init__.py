"""Generation: from the arguments of `generate` to a search, and what the search drives."""

from .ends import warn_of_no_end as warn_of_no_end
from .mixin import GenerationMixin as GenerationMixin
