"""Bulk registration of device credentials from a CSV file.

Rows are sent by the thousand, a few calls at a time; each answer is written and flushed before it counts, so that what
is registered is in the file when something fails. A row whose answer was lost is registered without anybody knowing its
secret; the next run finds it existing, and `--refresh-existing` gives it another.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import dataclasses
import itertools
import os
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from grpc import aio
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from services.cli.errors import WRONG_USE, CliError
from services.cli.rpc import Target
from weimq.auth.v1 import device_pb2 as pb
from weimq.auth.v1.device_pb2_grpc import DeviceServiceStub

BATCH = 1_000
"""Devices in one call; auth takes no more."""
CALLS = 4
"""Calls that are on their way at the same time."""
REFRESHES = 64
"""Refreshes that are on their way at the same time, for each of those calls."""
TIMEOUT_S = 60.0

COLUMN = "client_id"
HEADER = (COLUMN, "outcome", "device_credential_id", "username", "secret")
REFRESHED = "refreshed"

OUTCOMES: dict[int, str] = {
    pb.REGISTER_OUTCOME_REGISTERED: "registered",
    pb.REGISTER_OUTCOME_EXISTS: "has a credential already",
    pb.REGISTER_OUTCOME_CLIENT_ID_REJECTED: "the client id breaks the rules of the instance",
    pb.REGISTER_OUTCOME_GROUP_NOT_FOUND: "its group does not exist",
}


@dataclasses.dataclass
class Summary:
    """What became of the rows."""

    output: Path
    registered: int = 0
    refreshed: int = 0
    existing: int = 0
    rejected: int = 0

    def record(self) -> dict[str, object]:
        """Return it as printed."""
        return {**dataclasses.asdict(self), "output": str(self.output)}


def user_name(credential: pb.DeviceCredential) -> str:
    """Return the MQTT user name of a device."""
    return f"DeviceCredential|{credential.device_credential_id}|{credential.instance_id}"


def run(
    target: Target, *, instance_id: str, source: Path, output: Path, refresh_existing: bool, quiet: bool
) -> Summary:
    """Register every client id of a CSV file and write the credentials to a new one.

    Args:
        target: auth.
        instance_id: whose devices they are.
        source: CSV file; client ids are in the column `client_id`, without a heading in the first.
        output: made with mode 0600; must not exist.
        refresh_existing: whether devices that have a credential get another.
        quiet: whether to show no progress.

    Raises:
        CliError: a file can't be used, or a call failed.
    """
    # A client that is named twice gets one credential: another one would make the secret of the row before worthless.
    client_ids = list(dict.fromkeys(_client_ids(source)))
    total = len(client_ids)
    summary = Summary(output)
    with _private(output) as file, _progress(quiet) as progress:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        task = progress.add_task("devices", total=total)

        async def work(channel: aio.Channel) -> None:
            stub = DeviceServiceStub(channel)

            async def one(batch: list[str]) -> None:
                rows = await _register(stub, instance_id, batch, refresh_existing=refresh_existing)
                writer.writerows(row for row, _ in rows)
                file.flush()
                for _, name in rows:
                    setattr(summary, name, getattr(summary, name) + 1)
                progress.advance(task, len(batch))

            await _in_parallel(one(batch) for batch in _batches(iter(client_ids)))

        try:
            target.call(work)
        except CliError as error:
            done = summary.registered + summary.refreshed + summary.existing + summary.rejected
            raise CliError(
                f"{error.cause} {done} of {total} devices are done.",
                f"Their credentials are in {output}; run it again with another --output for the rest.",
            ) from error
    return summary


async def _register(
    stub: Any,  # noqa: ANN401 - of the asynchronous kind
    instance_id: str,
    batch: list[str],
    *,
    refresh_existing: bool,
) -> list[tuple[tuple[str, ...], str]]:
    """Register a batch; returns a row of the file for each, and which number of the summary it counts for."""
    request = pb.RegisterDeviceCredentialsRequest(instance_id=instance_id, client_ids=batch)
    answer = await stub.RegisterDeviceCredentials(request, timeout=TIMEOUT_S)
    slots = asyncio.Semaphore(REFRESHES)

    async def row(registration: pb.DeviceRegistration) -> tuple[tuple[str, ...], str]:
        credential = registration.device_credential
        match registration.outcome:
            case pb.REGISTER_OUTCOME_REGISTERED:
                return _row(credential, "registered", registration.secret), "registered"
            case pb.REGISTER_OUTCOME_EXISTS if refresh_existing:
                refresh = pb.RefreshDeviceCredentialRequest(instance_id=instance_id, client_id=credential.client_id)
                async with slots:
                    refreshed = await stub.RefreshDeviceCredential(refresh, timeout=TIMEOUT_S)
                return _row(refreshed.device_credential, REFRESHED, refreshed.secret), REFRESHED
            case pb.REGISTER_OUTCOME_EXISTS:
                return _row(credential, OUTCOMES[registration.outcome]), "existing"
            case outcome:
                return (credential.client_id, OUTCOMES.get(outcome, f"outcome {outcome}"), "", "", ""), "rejected"

    return list(await asyncio.gather(*map(row, answer.registrations)))


def _row(credential: pb.DeviceCredential, outcome: str, secret: str = "") -> tuple[str, ...]:
    return credential.client_id, outcome, credential.device_credential_id, user_name(credential), secret


async def _in_parallel(work: Iterable[Any]) -> None:
    """Run coroutines, `CALLS` at a time; the first failure ends all."""
    running: set[asyncio.Task[None]] = set()
    try:
        for one in work:
            running.add(asyncio.create_task(one))
            if len(running) == CALLS:
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        await asyncio.gather(*running)
    finally:
        for task in running:
            task.cancel()


def _client_ids(source: Path) -> Iterator[str]:
    try:
        with source.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file)
            first = next(rows, [])
            column = first.index(COLUMN) if COLUMN in first else 0
            if COLUMN not in first:
                rows = itertools.chain([first], rows)  # type: ignore[assignment]  # an iterator of rows, too
            for number, row in enumerate(rows, 2 if COLUMN in first else 1):
                if not row:
                    continue
                if len(row) <= column or not row[column].strip():
                    raise CliError(f"{source}: row {number} has no client id.", status=WRONG_USE)
                yield row[column].strip()
    except OSError as error:
        raise CliError(f"Can't read {source}: {error.strerror}.", status=WRONG_USE) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise CliError(f"{source} is no CSV file in UTF-8: {error}.", status=WRONG_USE) from error


def _batches(client_ids: Iterator[str]) -> Iterator[list[str]]:
    while batch := list(itertools.islice(client_ids, BATCH)):
        yield batch


@contextlib.contextmanager
def _private(path: Path) -> Generator[TextIO]:
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise CliError(
            f"{path} exists already, and may hold secrets.", "Move it away, or use --output.", status=WRONG_USE
        ) from None
    except OSError as error:
        raise CliError(f"Can't write {path}: {error.strerror}.", status=WRONG_USE) from error
    with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
        yield file


def _progress(quiet: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=quiet,
    )
