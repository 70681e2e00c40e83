"""The drop-in: models of transformers that run bertgen's operators over their own parameters."""
