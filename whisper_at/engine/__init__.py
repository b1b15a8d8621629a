"""Inference of the decoder and encoder on CPUs and GPUs, with openai-whisper's numbers."""
