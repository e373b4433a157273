"""`python -m api keys`: create, list, revoke and rotate API keys."""

import argparse
import re
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from api.auth import DEFAULT_ROLES, LIMITS, NAME, ROLES, KeyFile, KeyRecord, digest_of, new_key
from core.settings import settings
from core.webhooks.signature import new_secret

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "": 1}
_UNTIL_REVOKED = "until-revoked"


def main(words: Sequence[str]) -> int:
    """Run the command `keys` with the arguments `words`; return its exit status."""
    parser = _parser()
    args = parser.parse_args(words)
    path = args.file or settings().api_keys
    if path is None:
        parser.error("name the key file: set REVERIE_API_KEYS, or add --file PATH")
    file = KeyFile(Path(path))
    try:
        args.act(file, args)
    except (OSError, ValueError, LookupError) as error:
        sys.stderr.write(f"keys: {error}\n")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    """Return the parser of the arguments of `python -m api keys`."""
    parser = argparse.ArgumentParser(prog="python -m api keys", description="API keys; the service reloads the file.")
    parser.add_argument("--file", type=Path, help="the key file [default: REVERIE_API_KEYS]")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add = commands.add_parser("add", help="create a key and print it; it cannot be shown again")
    add.add_argument("name", type=_name, help="of its owner, as jobs, datasets and models show it")
    add.add_argument(
        "--roles", type=_roles, default=DEFAULT_ROLES, help=f"of {','.join(ROLES)} [default: all but admin]"
    )
    add.add_argument(
        "--expires", type=_seconds, metavar="TIME", help="how long it is valid, as 12h or 90d [default: ever]"
    )
    add.add_argument(
        "--limit", type=_limit, action="append", default=[], metavar="NAME=N", help=f"of {', '.join(LIMITS)}"
    )
    add.set_defaults(act=_add)
    commands.add_parser("list", help="show all keys, without their secrets").set_defaults(act=_list)
    revoke = commands.add_parser("revoke", help="remove keys; they are rejected within a second")
    revoke.add_argument("name", help="of the keys' owner")
    revoke.add_argument("--id", default="", help="only the one of this id, as `list` shows it")
    revoke.set_defaults(act=_revoke)
    rotate = commands.add_parser("rotate", help="create a new key for a name that has one, and let the old ones expire")
    rotate.add_argument("name", help="of the keys' owner")
    rotate.add_argument(
        "--keep",
        type=_keep,
        default=86_400.0,
        metavar="TIME",
        help=f"how long old keys stay valid: 0, 12h, 7d or {_UNTIL_REVOKED} [default: 1d]",
    )
    rotate.set_defaults(act=_rotate)
    return parser


def _name(text: str) -> str:
    """Parse an owner's name. Raises ArgumentTypeError if it is not valid."""
    if not NAME.fullmatch(text):
        raise argparse.ArgumentTypeError("a name has 1 to 80 letters, digits and . _ @ + -, and begins with no sign")
    return text


def _roles(text: str) -> frozenset[str]:
    """Parse a comma-separated list of roles. Raises ArgumentTypeError for an unknown one."""
    roles = frozenset(word.strip() for word in text.split(",") if word.strip())
    if not roles or not roles <= set(ROLES):
        raise argparse.ArgumentTypeError(f"roles are {', '.join(ROLES)}, separated by commas")
    return roles


def _seconds(text: str) -> float:
    """Parse a duration such as 12h or 90d; return seconds. Raises ArgumentTypeError for other
    texts.
    """
    match = re.fullmatch(r"([0-9]{1,9})([smhd]?)", text)
    if match is None:
        raise argparse.ArgumentTypeError("a time is a number with s, m, h or d, as in 12h or 90d")
    return float(match.group(1)) * _UNITS_S[match.group(2)]


def _keep(text: str) -> float | None:
    """Parse the option `--keep`: a duration in seconds, or None for keys that stay until revoked."""
    return None if text == _UNTIL_REVOKED else _seconds(text)


def _limit(text: str) -> tuple[str, int]:
    """Parse NAME=NUMBER; return the name and value of a limit. Raises ArgumentTypeError."""
    name, _, value = text.partition("=")
    if name not in LIMITS or not re.fullmatch(r"[0-9]{1,18}", value):
        raise argparse.ArgumentTypeError(f"a limit is NAME=NUMBER, of {', '.join(LIMITS)}")
    return name, int(value)


def _add(file: KeyFile, args: argparse.Namespace) -> None:
    key, secret = new_key(), new_secret()
    expires_at = None if args.expires is None else time.time() + args.expires
    file.add(KeyRecord(args.name, digest_of(key), args.roles, expires_at, dict(args.limit), secret))
    _print_key(key, secret)


def _list(file: KeyFile, _args: argparse.Namespace) -> None:
    rows = [("NAME", "ID", "ROLES", "EXPIRES", "LIMITS")]
    for record in file.records():
        roles = ",".join(role for role in ROLES if role in record.roles)
        limits = ",".join(f"{name}={value}" for name, value in sorted(record.limits.items()))
        rows.append((record.name, record.id, roles, _expiry(record), limits or "-"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        sys.stdout.write("  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() + "\n")


def _expiry(record: KeyRecord) -> str:
    """Return the time at which a key expires as text, or "never"."""
    if record.expires_at is None:
        return "never"
    at = datetime.fromtimestamp(record.expires_at, UTC).isoformat(timespec="seconds")
    return f"{at} (expired)" if record.expired(time.time()) else at


def _revoke(file: KeyFile, args: argparse.Namespace) -> None:
    if not (removed := file.revoke(args.name, args.id)):
        raise LookupError(f"{args.name} has no key{f' of id {args.id}' if args.id else ''}; `list` shows all")
    sys.stdout.write(f"{removed} key{'s' if removed > 1 else ''} of {args.name} revoked\n")


def _rotate(file: KeyFile, args: argparse.Namespace) -> None:
    key, secret, now = new_key(), new_secret(), time.time()
    until = None if args.keep is None else now + args.keep
    file.rotate(args.name, digest_of(key), until, now, secret)
    _print_key(key, secret)
    end = "they are revoked" if until is None else f"{datetime.fromtimestamp(until, UTC):%Y-%m-%d %H:%M:%SZ}"
    sys.stderr.write(f"older keys of {args.name} stay valid until {end}\n")


def _print_key(key: str, secret: str) -> None:
    """Print a new key to standard output, and its webhook secret to standard error.

    Also prints, to standard error, that neither can be shown again.
    """
    sys.stdout.write(f"{key}\n")
    sys.stderr.write("keep it: it is not stored and cannot be shown again\n")
    sys.stderr.write(f"the secret that signs its webhooks, which is not shown again either: {secret}\n")
