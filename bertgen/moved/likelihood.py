"""`bertgen.likelihood` is now `bertgen.generator.scorer`."""

from bertgen.generator.scorer import Likelihood as Likelihood
