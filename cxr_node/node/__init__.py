"""The roles as processes: supervisor, worker, housekeeping, repair."""
