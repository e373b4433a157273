"""Wait until the service is ready and print its address: `python -m workers.ready URL`.

The program runs while the service starts, so it imports only the standard library.
"""

import sys
import time
import urllib.request

_READY_S, _POLL_S = 180.0, 0.1


def main() -> None:
    """Print the address of the service when it is ready; exit with 1 if that takes too long."""
    address = sys.argv[1]
    until = time.monotonic() + _READY_S
    while time.monotonic() < until:
        try:
            urllib.request.urlopen(f"{address}/readyz", timeout=2).close()  # noqa: S310 - our own address
            break
        except OSError:
            time.sleep(_POLL_S)
    else:
        sys.exit(f"Reverie is not ready after {_READY_S:.0f} s; see the lines above")
    sys.stdout.write(
        f"\nReverie is ready at {address} (documentation: {address}/docs). Try:\n\n"
        f"  curl {address}/v1/samples -H 'Content-Type: application/json' -H 'Accept: image/png' \\\n"
        '    -d \'{"model": "vae-mnist", "count": 64, "seed": 3}\' -o digits.png\n\n'
        "Ctrl-C stops everything.\n\n"
    )


if __name__ == "__main__":
    main()
