"""The methods of `Client` and `AsyncClient`, one file per resource of the HTTP API."""

from reverie.methods.datasets import DatasetMethods
from reverie.methods.jobs import JobMethods
from reverie.methods.models import ModelMethods
from reverie.methods.operations import OperationMethods
from reverie.methods.trainings import TrainingMethods


class ApiMethods(OperationMethods, ModelMethods, DatasetMethods, TrainingMethods, JobMethods):
    """All methods of the clients except `events`."""
