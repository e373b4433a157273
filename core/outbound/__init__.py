"""Send HTTP requests to URLs that clients give, but never to addresses that are not allowed."""
