"""S3 object stores for tests: moto's server, one for each test process, or another at an address."""

from functools import cache
from typing import Any
from uuid import uuid4

import boto3  # type: ignore[import-untyped]
from moto.server import ThreadedMotoServer

# The keys of a server that checks them (`tests.seaweedfs`); moto's does not.
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}


@cache
def moto_endpoint() -> str:
    """Return the address of this process's server, which is started first if necessary.

    It ends with the process.
    """
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    return "http://{}:{}".format(*server.get_host_and_port())


@cache
def client(endpoint: str) -> Any:
    """Return a client of another library than the service's, to see what is in the store."""
    keys = {name.lower(): CREDENTIALS[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    return boto3.client("s3", endpoint_url=endpoint, region_name=CREDENTIALS["AWS_REGION"], **keys)


def new_bucket(endpoint: str) -> str:
    """Create a bucket in the store at an address; return its name."""
    name = f"bucket-{uuid4().hex[:16]}"
    client(endpoint).create_bucket(Bucket=name)
    return name


def new_store(endpoint: str | None = None) -> str:
    """Return the URL of an empty blob store in a new bucket, by default of this process's server."""
    endpoint = endpoint or moto_endpoint()
    return f"s3://{new_bucket(endpoint)}/blobs?endpoint={endpoint}"
