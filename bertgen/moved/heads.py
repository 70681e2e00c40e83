"""`bertgen.heads` is now `bertgen.layers.heads`."""

from bertgen.layers.heads import BertLMHead as BertLMHead
from bertgen.layers.heads import BertPredictions as BertPredictions
from bertgen.layers.heads import LMHead as LMHead
from bertgen.layers.heads import Pooler as Pooler
from bertgen.layers.heads import RobertaLMHead as RobertaLMHead
from bertgen.layers.heads import Transform as Transform
