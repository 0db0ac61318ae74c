"""Reading and writing of checkpoints that consist of safetensors and JSON and contain no code."""
