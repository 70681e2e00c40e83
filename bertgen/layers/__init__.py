"""Layers of a post-LN BERT encoder or decoder, on packed tokens."""

from .attention import AttentionContext as AttentionContext
