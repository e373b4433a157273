"""Run a training worker: `python -m workers.training`."""

from core.startup import check, errors_end_the_program, load_settings


def main() -> None:
    """Check settings and servers, then run a training worker until SIGTERM or SIGINT."""
    with errors_end_the_program():
        settings = load_settings()
        check(settings)
    from workers.training.worker import run  # noqa: PLC0415 - a refused start is quick

    run(settings)


if __name__ == "__main__":
    main()
