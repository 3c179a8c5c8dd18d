"""Command lines for mosquitto's clients, which commands print so that what they made can be tried at once."""

from __future__ import annotations

import shlex
from pathlib import Path

from services.cli.ports import LOOPBACK, split_address
from services.cli.run_file import read_running
from services.cli.secrets import DataDir


def lines(
    data: Path, *, client_id: str, username: str, password: str, subscribe: str = "", publish: str = ""
) -> list[str]:
    """Return the command lines of a client of the mesh on a data directory.

    Args:
        data: the data directory; when no mesh runs there, the usual port is taken.
        client_id: of the client.
        username: its MQTT user name.
        password: its MQTT password.
        subscribe: topic filter; empty: no line for `mosquitto_sub`.
        publish: topic; empty: no line for `mosquitto_pub`.
    """
    run = read_running(DataDir(data))
    host, port = split_address(run.endpoints["mqtt"] if run else f"{LOOPBACK}:1883")
    login = ["-h", LOOPBACK if host in {"0.0.0.0", "::"} else host, "-p", str(port), "-i", client_id]
    login += ["-u", username, "-P", password, "-q", "1"]
    made = []
    if subscribe:
        made.append(shlex.join(["mosquitto_sub", *login, "-t", subscribe, "-v"]))
    if publish:
        made.append(shlex.join(["mosquitto_pub", *login, "-t", publish, "-m", "hello"]))
    return made
