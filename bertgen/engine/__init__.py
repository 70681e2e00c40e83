"""The engine: ids in, ids out, for any number of requests at once."""

from .engine import Engine as Engine
from .request import Request as Request
from .statistics import EngineStatistics as EngineStatistics
