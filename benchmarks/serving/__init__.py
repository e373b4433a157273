"""What serve.py is made of: servers, clients, sweep, rounds, bulk work and the report."""
