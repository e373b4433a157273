"""Renders results, jobs and images as responses, and sends them."""
