"""Webhooks of jobs: signed requests to a client's URL, stored in SQL until they are delivered."""
