"""Jobs: records and their store."""
