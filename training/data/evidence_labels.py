"""Labels of the evidence stage beyond the classes."""

from __future__ import annotations

OTHER, UNSPECIFIED = "other_abnormal", "pneumonia_unspecified"
"""Disease without opacity; opacity, no germ named."""
