"""What the hosts of one instance of the service have in common: its id, and the secret of webhooks.

This module imports little, because every program imports it before its settings are checked.
"""

from functools import lru_cache

import sqlalchemy as sa

from core.blobs import is_remote
from core.files import write_durably
from core.jobs.schema import instance, transaction
from core.jobs.store import JobStore
from core.settings import Settings, StatePaths
from core.webhooks.signature import secret_of_file


# See docs/decisions.md#hosts-share-the-job-database-and-the-blob-store-and-no-folder
def is_shared(settings: Settings) -> bool:
    """Return whether several hosts can share the instance's data without a common folder.

    They can if the blob store is remote: then the job database and the blob store have the data
    that are otherwise in folders of one host.
    """
    return is_remote(settings.blobs)


@lru_cache(maxsize=16)
def instance_id(database_url: str, first_id: str) -> str:
    """Return the id of the instance that uses a job database; store `first_id` if it has none."""
    engine = JobStore(database_url).engine
    try:
        with transaction(engine) as connection:
            # two hosts may start at the same time; the row of `migrate` is locked
            connection.execute(instance.update().where(instance.c.id == "").values(id=first_id))
            return str(connection.scalar(sa.select(instance.c.id)))
    finally:
        engine.dispose()


def share_webhook_secret(settings: Settings) -> None:
    """Make all hosts sign webhooks of jobs without an owner with the same secret, the first host's.

    The secret is stored in the job database and in a file of each host.
    """
    file = StatePaths(settings.state).webhook_secret
    engine = JobStore(settings.database).engine
    try:
        with transaction(engine) as connection:
            missing = instance.c.webhook_secret.is_(None)
            connection.execute(instance.update().where(missing).values(webhook_secret=secret_of_file(file)))
            secret = str(connection.scalar(sa.select(instance.c.webhook_secret)))
    finally:
        engine.dispose()
    if secret != secret_of_file(file):
        write_durably(file, secret + "\n", mode=0o600)
