"""Durable storage: instances and results as files; jobs, deliveries and the audit log as rows."""
