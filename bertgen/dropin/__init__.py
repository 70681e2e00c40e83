"""bertgen inside a program of transformers."""
