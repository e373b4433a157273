"""Check, decode and encode image files, and divide photographs into tiles."""
