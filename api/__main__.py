"""`python -m api`: one API process.

`python -m api keys` creates, lists, revokes and rotates API keys. Modules that take long to import
are imported after the settings are checked, so that an invalid setting is reported at once.
"""

import sys

from api import keys_command
from api.exposure import exit_if_refused
from core.startup import bound_socket, check, errors_end_the_program, load_settings


def main() -> None:
    """Serve HTTP until SIGTERM or SIGINT, or run the subcommand `keys`."""
    if sys.argv[1:2] == ["keys"]:
        sys.exit(keys_command.main(sys.argv[2:]))
    with errors_end_the_program():
        settings = load_settings()
        exit_if_refused(settings)
        listener = bound_socket(settings.host, settings.port, "REVERIE_HOST or REVERIE_PORT to another one")
        check(settings)
    from api.server import serve  # noqa: PLC0415

    serve(settings, listener)


if __name__ == "__main__":
    main()
