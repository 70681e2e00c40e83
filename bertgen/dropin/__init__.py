"""The drop-in: transformers models that run bertgen's operators on their own parameters."""
