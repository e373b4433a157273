"""Run the processes behind the API.

The package `inference` runs models in Celery workers, `training` runs trainings in child processes,
and the module `devserver` starts the whole service in one terminal.
"""
