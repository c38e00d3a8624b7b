"""Takes instances in: associations, admission, bytes to disk, the job's row, and only then 0x0000."""
