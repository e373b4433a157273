"""Send HTTP requests to URLs that clients give, but never to internal addresses."""
