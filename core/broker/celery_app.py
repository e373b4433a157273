"""Configure the Celery application, which API processes and inference workers share.

    celery -A core.broker.celery_app worker -P solo --without-gossip --without-mingle --without-heartbeat

starts an inference worker, as `python -m workers.inference` does. Only a worker imports the tasks
(`include`), and with them torch; an API process only builds messages (`core.broker.publisher`).

Delivery is at most once: messages are not acknowledged, and neither Celery's results nor its
retries are used. Unfinished work is recorded elsewhere: by the API process that waits for a batch,
and by the job store (docs/decisions.md).
"""

from typing import Any

from celery import Celery
from kombu.entity import Queue

from core.broker.address import QueueAddress
from core.broker.keys import QUEUES, queue_key
from core.startup import errors_end_the_program, load_settings

RUN_BATCH = "reverie.run_batch"
RUN_JOBS = "reverie.run_jobs"


def configuration() -> dict[str, Any]:
    """Return Celery's configuration, made from the settings of the environment.

    If the settings are invalid, the program ends with an error message.
    """
    with errors_end_the_program():
        settings = load_settings()
    broker = QueueAddress.parse(settings.queue_url).celery_configuration()
    return {
        **broker,
        "broker_transport_options": {
            # queues take turns: a small request waits for one slice of long work, and long work
            # never starves
            "queue_order_strategy": "round_robin",
            "priority_steps": [0],  # one list per queue: without priorities the others stay empty
            "socket_timeout": 15,
            "socket_connect_timeout": 2,
            "socket_keepalive": True,
            "health_check_interval": 10,
            "max_connections": 20,
            **broker["broker_transport_options"],
        },
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        # a queue server with a full disk rejects all writes, also taking a message: retry instead
        # of exiting
        "broker_channel_error_retry": True,
        "broker_connection_timeout": 2,
        "broker_heartbeat": 0,
        # no acknowledgement: each one costs two round trips
        "task_queues": [Queue(queue_key(queue), routing_key=queue_key(queue), no_ack=True) for queue in QUEUES],
        "task_default_queue": queue_key("interactive"),
        "task_serializer": "msgpack",
        "accept_content": ["msgpack"],
        "task_ignore_result": True,
        # a name: only a worker imports it
        "worker_consumer": "workers.inference.consumer:Consumer",
        "worker_pool": "solo",
        "worker_concurrency": 1,
        "worker_prefetch_multiplier": 1,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        # `celery inspect` and Flower
        "worker_enable_remote_control": settings.remote_control,
    }


app = Celery("reverie", include=["workers.inference.tasks"])
# evaluated when first needed: importing this module reads no environment
app.add_defaults(configuration)
