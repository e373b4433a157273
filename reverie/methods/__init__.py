"""The methods of `Client` and `AsyncClient`, one file per resource of the HTTP API."""

from reverie.methods.datasets import DatasetMethods
from reverie.methods.jobs import JobMethods, TrainingMethods
from reverie.methods.models import ModelMethods
from reverie.methods.operations import OperationMethods


class ApiMethods(OperationMethods, ModelMethods, DatasetMethods, TrainingMethods, JobMethods):
    """All methods of the clients that call the HTTP API, except `events`."""
