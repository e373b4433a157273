"""Describes, for OpenAPI, the request that the service sends to a webhook."""

from typing import Any

from api.schemas.webhooks import WebhookEvent

_HEADERS = {
    "webhook-id": "The id of the delivery, the same in every attempt.",
    "webhook-timestamp": "The time of the attempt, in seconds since the epoch.",
    "webhook-signature": "`v1,` and the signature in base64; several are separated by spaces.",
}
JOB_EVENT: dict[str, Any] = {
    "operationId": "receive_job_event",
    "summary": "A job has got another status",
    "description": "Sent by Standard Webhooks to the `webhook` of a request. 2xx accepts it; 410 ends the retries.",
    "tags": ["jobs"],
    "security": [],
    "parameters": [
        {"name": name, "in": "header", "required": True, "schema": {"type": "string"}, "description": description}
        for name, description in _HEADERS.items()
    ],
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{WebhookEvent.__name__}"}}},
    },
    "responses": {"204": {"description": "Accepted"}, "410": {"description": "Not wanted any more"}},
}
