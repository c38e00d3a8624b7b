"""Results to their destinations, by C-STORE: what is sent, what is tried again, and why something failed."""
