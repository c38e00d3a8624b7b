"""RESULTS.md: the paper's experiments, and their figures beside the stored runs'."""
