"""Generative models, one published paper a file; what papers share lies in `models.kit`."""
