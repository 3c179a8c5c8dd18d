"""`weimq up` and `weimq init`: a mesh on this machine."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from services import compiled
from services.cli import certificate, config_file, mesh, nats_config, run_file
from services.cli.console import UpReport
from services.cli.errors import WRONG_USE, CliError
from services.cli.options import DataOption, data_options
from services.cli.ports import LOOPBACK, MAX_EDGES, MAX_NATS_NODES, check_free, plan_ports, split_address
from services.cli.secrets import DataDir
from services.cli.supervisor import Supervisor, WrongSettingsError

ENOUGH_FILES = 16_384
"""Open files for each process below which `weimq up` says that they limit the clients."""


def up(
    data: DataOption = Path(".weimq"),
    port_base: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            show_default="1883, 8883, 8083, 8084, 8080, 8081, 7001-7004, 4222",
            help="First port: MQTT on N to N+3, HTTP on N+4 and N+5, gRPC on N+6 to N+9, NATS on N+10.",
        ),
    ] = None,
    edges: Annotated[
        int,
        typer.Option(metavar="N", min=1, max=MAX_EDGES, help="Edge processes; edge k listens 20*k ports higher."),
    ] = 1,
    routers: Annotated[
        int,
        typer.Option(metavar="N", min=1, max=mesh.MAX_REPLICAS, help="Routers; parent topics are spread over them."),
    ] = 1,
    sessions: Annotated[
        int,
        typer.Option(metavar="N", min=1, max=mesh.MAX_REPLICAS, help="Session shards; clients are spread over them."),
    ] = 1,
    nats_nodes: Annotated[
        int,
        typer.Option(metavar="N", min=1, max=MAX_NATS_NODES, help="NATS servers, 1, 3 or 5; several are a cluster."),
    ] = 1,
    default_instance: Annotated[
        str, typer.Option(metavar="ID", help="Instance that serves clients whose user name names none.")
    ] = "",
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Settings of the services, TOML: a table for each service.")
    ] = None,
) -> None:
    """Run the whole mesh on this machine, with a NATS server, until Ctrl-C.

    Makes the secrets of the data directory at the first start and prints `weimq ready` when every process is healthy.
    """
    if nats_nodes % 2 == 0:
        raise CliError(f"--nats-nodes must be 1, 3 or 5, not {nats_nodes}.", status=WRONG_USE)
    ports = plan_ports(port_base, edges, nats_nodes)
    settings = config_file.read(config) if config else None
    nats_server = mesh.find_nats_server()
    directory = DataDir(data)
    directory.initialize()
    certificate.ensure(directory)
    with run_file.locked(directory), run_file.socket_directory() as sockets:
        planned = mesh.plan(
            data=directory,
            ports=ports,
            sockets=sockets,
            nats_server=nats_server,
            config=settings,
            default_instance=default_instance,
            routers=routers,
            sessions=sessions,
            nats_nodes=nats_nodes,
        )
        check_free((process.name, address) for process in planned.processes for address in process.listens)
        _prepare(directory, mesh.nats_addresses(ports, nats_nodes), mesh.nats_routes(ports))
        report = UpReport(
            endpoints=planned.endpoints,
            data=data_options(data),
            logs=_shortest(directory.logs),
            default_instance=default_instance,
        )
        run = run_file.Run(supervisor_pid=os.getpid(), sockets=str(sockets), endpoints=planned.endpoints)

        def changed(pids: dict[str, int]) -> None:
            run.pids = pids
            run.write(directory)

        changed({})
        _, files = resource.getrlimit(resource.RLIMIT_NOFILE)  # the launcher lets each process have all of them
        if files < ENOUGH_FILES:
            report.few_files(files)
        if not compiled.is_active:
            report.pure(compiled.reason)
        report.starting(len(planned.processes), _shortest(directory.path))
        # Not on uvloop: it starts processes by fork(), which runs gRPC's fork handlers in the child; they crash now and
        # then. asyncio's own loop uses vfork().
        secrets = f"what is in {_shortest(directory.secrets)}"
        source = f"{config}, or {secrets}" if config else secrets
        asyncio.run(_supervise(planned.processes, directory.logs, report, changed, source))


def _prepare(data: DataDir, addresses: list[str], routes: list[str]) -> None:
    """Make the directories and files that processes find at their start."""
    # JetStream finds nothing of what a single server stored when it becomes a node of a cluster, nor the reverse.
    if data.nats_store.exists() if routes else (data.path / "nats-0").exists():
        raise CliError(
            f"{data.path} holds what {'a single NATS server' if routes else 'a cluster of NATS servers'} stored.",
            "Give the --nats-nodes of its first start, or another --data DIR.",
        )
    stores = [data.path / f"nats-{index}" for index in range(len(routes))] or [data.nats_store]
    for directory in (data.logs, *stores):
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise CliError(f"Can't make {directory}: {error.strerror}.", "Check owner and permissions.") from error
    nats_config.write_files(
        data, listen=addresses[0], address=",".join(addresses), store=data.nats_store, routes=routes
    )


async def _supervise(
    processes: tuple[mesh.Process, ...],
    logs: Path,
    report: UpReport,
    changed: Callable[[dict[str, int]], None],
    source: str,
) -> None:
    """Run the processes until a signal; `source` is where their settings are from, for people.

    Raises:
        CliError: services refused their settings, or a second signal came.
    """
    supervisor = Supervisor(processes, logs=logs, report=report, changed=changed)
    stop = asyncio.Event()
    was_killed = False

    def on_signal() -> None:
        nonlocal was_killed
        if stop.is_set():
            was_killed = True
            supervisor.hurry()
            return
        report.stopping()
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):  # though a script that starts us with `&` has SIGINT ignored
        loop.add_signal_handler(number, on_signal)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # `nohup weimq up` stays
        loop.add_signal_handler(signal.SIGHUP, on_signal)
    try:
        await supervisor.run(stop)
    except WrongSettingsError as error:
        raise CliError(
            str(error) or "a service refused its settings.",
            f"Correct {source}; settings are listed in docs/operations.md.",
            status=WRONG_USE,
        ) from None
    if was_killed:
        raise CliError("Killed before everything had stopped.")
    report.stopped()


def init(
    data: DataOption = Path(".weimq"),
    nats_listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where NATS listens.")] = f"{LOOPBACK}:4222",
    nats_address: Annotated[
        str, typer.Option(metavar="HOST:PORT", show_default="as --nats-listen", help="Where services reach NATS.")
    ] = "",
    nats_store: Annotated[
        Path | None,
        typer.Option(metavar="DIR", show_default="DATA/nats", help="JetStream's directory as NATS sees it."),
    ] = None,
) -> None:
    """Make the secrets and the NATS configuration of a data directory, and start nothing.

    Existing secrets stay as they are. For meshes whose processes something else runs, such as Docker Compose.
    """
    for address in filter(None, (nats_listen, nats_address)):
        try:
            split_address(address)
        except ValueError as error:
            raise CliError(f"{error}.", status=WRONG_USE) from error
    directory = DataDir(data)
    directory.initialize()
    certificate.ensure(directory)
    nats_config.write_files(
        directory,
        listen=nats_listen,
        address=nats_address or nats_listen,
        store=nats_store or directory.nats_store,
    )
    typer.echo(f"secrets are in {directory.secrets}")


def _shortest(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
