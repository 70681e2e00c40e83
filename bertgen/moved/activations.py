"""`bertgen.activations` is now `bertgen.layers.activations`."""

from bertgen.layers.activations import XIELU as XIELU
