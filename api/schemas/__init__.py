"""Defines request and response bodies, in one file per resource."""
