"""The HTTP side of the service: routes, uploads, errors and responses.

No module of this package imports torch, directly or through another module.
"""
