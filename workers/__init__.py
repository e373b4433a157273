"""The processes behind the API.

`inference` runs models in Celery workers, `training` runs trainings in child processes, and
`devserver` starts the whole service in one terminal.
"""
