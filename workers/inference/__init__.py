"""Inference workers: models in memory behind Celery tasks."""
