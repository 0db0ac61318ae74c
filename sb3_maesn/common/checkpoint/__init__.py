"""Checkpoints of safetensors and JSON, which hold no code: writing, checking and reading them."""
