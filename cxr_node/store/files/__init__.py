"""Blobs and the data folder: immutable files on this disk, in a bucket, or in a spool before it."""
