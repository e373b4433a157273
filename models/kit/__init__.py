"""Provide what all model families share: random streams, options, model cards, data and training."""

# exit statuses of `python -m models`: can be resumed; bad loss; not enough memory
INTERRUPTED, BAD_LOSS, TOO_LARGE = 3, 4, 5
