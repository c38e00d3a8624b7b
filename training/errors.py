"""The error that training raises on purpose."""

from __future__ import annotations


class TrainingError(ValueError):
    """What a person gave the training can't be used; the text says what and what to do. Shown without a traceback."""
