"""The key/value cache of a decoder, and the allocators of its slots."""

from .block_allocator import Admission as Admission
from .cache import Cache as Cache
