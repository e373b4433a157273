"""Parts of serve.py: servers, clients, sweep, rounds, bulk work and the report."""
