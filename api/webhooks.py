"""Checks the webhooks of requests, and sends deliveries in the background."""

import asyncio
import contextlib
import logging
import time
from collections import Counter

import httpcore
import httpx
import sqlalchemy as sa

from api.auth import Caller, Keys
from api.errors import InvalidError
from api.jobs import JobService
from api.schemas.webhooks import WebhookBody
from core.outbound.addresses import AddressPolicy, BlockedAddressError, Resolver, check_host, parse_url, resolve
from core.outbound.network_backend import REQUEST_ERRORS, describe_error, guarded_pool, request_to
from core.settings import Settings, StatePaths
from core.webhooks.deliveries import Deliveries
from core.webhooks.records import Attempt, Delivery, Webhook
from core.webhooks.signature import secret_of_file, signed_headers

log = logging.getLogger(__name__)

ATTEMPT_TIMEOUT_S = 15.0
LEASE_S = 30.0  # longer than an attempt with the write of its outcome
MAX_IN_FLIGHT = 64
MAX_PER_HOST = 8
POLL_S = 0.5
STOP_S = 2.0  # how long a stopping process waits for attempts in flight

_CHECK_S = 2.0  # how long a request waits for the name server
_MAX_RESPONSE_BYTES = 64 << 10  # a longer response is not read to its end
_DISCARD_S = 1.0  # how long it is read
_MAX_RETRY_AFTER_DIGITS = 6


class Webhooks:
    """Checks webhooks of requests, and sends the deliveries of the job store in the background."""

    def __init__(
        self,
        settings: Settings,
        job_service: JobService,
        deliveries: Deliveries,
        keys: Keys,
        resolver: Resolver = resolve,
    ) -> None:
        """Set the services; nothing is sent before `run` is called.

        `keys` has the secrets that sign deliveries, and `resolver` looks up the addresses of hosts.
        """
        self.deliveries = deliveries
        self._job_service = job_service
        self._keys = keys
        self._secret_file = StatePaths(settings.state).webhook_secret
        self._policy = AddressPolicy.of(settings.allowed_networks)
        self._resolver = resolver
        self._pool: httpcore.AsyncConnectionPool | None = None
        self._in_flight: Counter[str] = Counter()
        self._attempts: set[asyncio.Task[None]] = set()

    # --- requests ---

    async def check(self, body: WebhookBody | None, caller: Caller) -> Webhook | None:
        """Check the webhook of a request, and return it; None if the request has none.

        Raises InvalidError if its URL is not valid, if its host does not exist or is not a public
        address, or if the caller's key has no secret to sign with.
        """
        if body is None:
            return None
        try:
            url = parse_url(body.url)
            await check_host(url, self._policy, _CHECK_S, self._resolver)
        except (ValueError, BlockedAddressError) as error:
            raise InvalidError.in_field("webhook.url", str(error)) from error
        if caller.name and not self._keys.webhook_secrets(caller.name):
            detail = (
                "your API key has no webhook secret, because it is older than webhooks; the operator makes a new key "
                "by `python -m api keys rotate NAME`"
            )
            raise InvalidError.in_field("webhook", detail)
        return Webhook(str(url), tuple(dict.fromkeys(body.events)))

    # --- deliveries ---

    async def run(self) -> None:
        """Send each delivery when the time of its next attempt has come, until cancelled.

        When cancelled, waits up to `STOP_S` seconds for the deliveries that are being sent.
        """
        try:
            while True:
                try:
                    sent = await self._send_due()
                except sa.exc.SQLAlchemyError as error:
                    log.warning("deliveries not read", extra={"reason": str(getattr(error, "orig", error))})
                    sent = 0
                except Exception:
                    log.exception("sending webhooks")
                    sent = 0
                if not sent:
                    await asyncio.sleep(POLL_S)
        finally:
            await self._stop()

    async def _send_due(self) -> int:
        """Claim the deliveries whose time of the next attempt has come; return their number.

        Each claimed delivery is sent in a task. Claims no more than may be sent at the same time,
        to all hosts together and to each host.
        """
        free = MAX_IN_FLIGHT - len(self._attempts)
        if free <= 0 or not await self._job_service.read(lambda _: self.deliveries.any_due()):
            return 0
        in_flight = dict(self._in_flight)
        claimed = await self._job_service.write(lambda _: self.deliveries.claim(LEASE_S, free, in_flight, MAX_PER_HOST))
        for delivery in claimed:
            self._in_flight[delivery.host] += 1
            task = asyncio.create_task(self._deliver(delivery))
            self._attempts.add(task)
            task.add_done_callback(self._attempts.discard)
        return len(claimed)

    async def _stop(self) -> None:
        """Wait up to `STOP_S` seconds until the deliveries that are being sent have ended.

        The others are cancelled; they are sent again when their leases have expired.
        """
        if self._attempts:
            await asyncio.wait(self._attempts, timeout=STOP_S)
        for task in list(self._attempts):
            task.cancel()
        await asyncio.gather(*self._attempts, return_exceptions=True)
        if self._pool is not None:
            with contextlib.suppress(Exception):
                await self._pool.aclose()

    async def _deliver(self, delivery: Delivery) -> None:
        """Send a claimed delivery once, and write the outcome to the database.

        If it cannot be written, the error is logged; the delivery is sent again when its lease has
        expired.
        """
        try:
            attempt = await self._attempt(delivery)
            await self._job_service.write(lambda _: self.deliveries.record(delivery, attempt))
            if not attempt.delivered:
                about = {"delivery": delivery.id, "job": delivery.job_id, "attempt": delivery.attempts + 1}
                log.info("webhook not delivered", extra={**about, "reason": attempt.error})
        except Exception:
            log.exception("webhook attempt not recorded", extra={"delivery": delivery.id})
        finally:
            self._in_flight[delivery.host] -= 1
            if self._in_flight[delivery.host] <= 0:
                del self._in_flight[delivery.host]

    async def _attempt(self, delivery: Delivery) -> Attempt:
        """Send a delivery once, signed with the secret of each valid API key of its owner.

        A delivery without an owner is signed with the service's secret. Returns the outcome,
        including errors: the secrets cannot be read, or the receiver cannot be reached.
        """
        try:
            secrets = await asyncio.to_thread(self._secrets, delivery.owner)
        except OSError as error:
            return Attempt(error=f"the webhook secret cannot be read: {error}")
        if not secrets:
            return Attempt(error=f"no API key of {delivery.owner} has a webhook secret")
        body = delivery.body.encode()
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "Reverie",
            "Accept-Encoding": "identity",
            **signed_headers(delivery.id, int(time.time()), body, secrets),
        }
        try:
            async with asyncio.timeout(ATTEMPT_TIMEOUT_S):
                return await self._post(httpx.URL(delivery.url), headers, body)
        except REQUEST_ERRORS as error:
            return Attempt(error=describe_error(error))

    def _secrets(self, owner: str) -> list[str]:
        """Return the secrets that sign deliveries of an owner; without an owner, the service's
        secret.
        """
        return self._keys.webhook_secrets(owner) if owner else [secret_of_file(self._secret_file)]

    async def _post(self, url: httpx.URL, headers: dict[str, str], body: bytes) -> Attempt:
        """Send a POST request and return the outcome; the response's body is not kept.

        Raises the errors of httpcore.
        """
        if self._pool is None:
            self._pool = guarded_pool(self._policy, self._resolver)
        async with request_to(self._pool, "POST", url, headers, body) as response:
            attempt = _outcome(response)
            with contextlib.suppress(*REQUEST_ERRORS):
                async with asyncio.timeout(_DISCARD_S):
                    await _discard(response)
            return attempt


async def _discard(response: httpcore.Response) -> None:
    """Read and drop the body of a response; stop early if it is long.

    A response that was read to its end leaves its connection open for the next request.
    """
    read = 0
    async for chunk in response.aiter_stream():
        read += len(chunk)
        if read > _MAX_RESPONSE_BYTES:
            return


def _outcome(response: httpcore.Response) -> Attempt:
    """Return the outcome that a receiver's response means: success for the statuses 200 to 299."""
    status = response.status
    if 200 <= status < 300:
        return Attempt(status)
    error = f"the receiver responded {status}"
    if 300 <= status < 400:
        error += "; redirects are not followed"
    after = next((value for name, value in response.headers if name.lower() == b"retry-after"), b"")
    retry_after_s = float(after) if after.isdigit() and len(after) <= _MAX_RETRY_AFTER_DIGITS else 0.0
    return Attempt(status, error, retry_after_s)
