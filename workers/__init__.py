"""Worker processes: `inference` (Celery and torch), `training` (child processes), and `devserver`."""
