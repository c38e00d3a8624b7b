"""Users, tokens and lock-outs."""
