"""The rows of the audit log: written, chained, searched."""
