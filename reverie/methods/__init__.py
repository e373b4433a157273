"""Define the methods of `Client` and `AsyncClient`, one file for each kind of resource."""

from reverie.methods.datasets import DatasetMethods
from reverie.methods.jobs import JobMethods, TrainingMethods
from reverie.methods.models import ModelMethods
from reverie.methods.operations import OperationMethods


class ApiMethods(OperationMethods, ModelMethods, DatasetMethods, TrainingMethods, JobMethods):
    """All methods that `Client` and `AsyncClient` share, one for each use of the HTTP API.

    The method `events` is missing here, because each client defines its own.
    """
