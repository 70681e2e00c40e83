"""`bertgen.linear` is now `bertgen.layers.linear`."""

from bertgen.layers.linear import Int4Linear as Int4Linear
