"""Radiographs to learn from: imported, split by patient, and loaded."""
