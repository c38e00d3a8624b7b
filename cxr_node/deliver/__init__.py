"""Delivers results to their destinations by C-STORE: sending, retries, and explanations of failures."""
