"""The `weimq` program."""

from __future__ import annotations

import os
import signal
import sys

_PROXIES = ("grpc_proxy", "http_proxy", "https_proxy")


def main() -> None:
    """Run the command line; a failure is told with cause and cure, never with a traceback."""
    for name in _PROXIES:  # gRPC would send even calls to loopback through them
        os.environ.pop(name, None)
    try:
        from services.cli.app import app  # noqa: PLC0415 - gRPC reads the environment when it is imported
        from services.cli.errors import CliError  # noqa: PLC0415

        try:
            app(prog_name="weimq")
        except CliError as error:
            sys.stderr.write(f"weimq: {error.cause}\n" + (f"{error.cure}\n" if error.cure else ""))
            sys.exit(error.status)
    except KeyboardInterrupt:  # while all that was imported: a second on a busy machine
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()
