"""Run supervisord without its pause at the start: `python -m workers.supervision -c FILE`.

supervisord waits for a second before it starts its first processes, because until then it has
nothing to listen to.
"""

import contextlib

from supervisor.medusa.asyncore_25 import ExitNow
from supervisor.options import ServerOptions
from supervisor.states import SupervisorStates
from supervisor.supervisord import Supervisor


class PromptSupervisor(Supervisor):  # type: ignore[misc] # supervisor is not typed
    """A supervisord that starts its processes at once."""

    def runforever(self) -> None:
        """Start the processes in the order of priority, then run supervisord's event loop."""
        for group in sorted(self.process_groups.values()):
            group.transition()
        super().runforever()


def main() -> None:
    """Run supervisord until SIGTERM or SIGINT.

    SIGHUP makes supervisord stop its processes, read its configuration again and start them.
    """
    first, mood = True, SupervisorStates.RESTARTING
    while mood >= SupervisorStates.RESTARTING:
        options = ServerOptions()
        options.realize(doc=__doc__)
        options.first, options.test = first, False
        with contextlib.suppress(ExitNow):
            PromptSupervisor(options).main()
        options.close_httpservers()
        options.close_logger()
        first, mood = False, options.mood


if __name__ == "__main__":
    main()
