"""Storage commitment (PS3.4 annex J): data sets, requests to destinations, and reports owed to modalities."""
