"""Fuzzing of the parser, the decoder and the listener: `python -m tests.fuzz` (make fuzz); tests run it in short."""
