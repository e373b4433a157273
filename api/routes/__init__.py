"""Defines the routes, in one file per resource."""
