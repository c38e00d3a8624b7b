"""Reception: associations, admission, bytes to disk, the job row, and only then 0x0000."""
