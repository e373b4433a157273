"""Generative models, one module or package per published paper; shared code is in `models.kit`."""
