"""HTTP requests of the service to URLs that clients give, guarded against internal addresses."""
