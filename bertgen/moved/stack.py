"""`bertgen.stack` is now `bertgen.layers.stack`."""

from bertgen.layers.stack import Stack as Stack
