"""What the first start makes: one instance with an AccessKey, a group and a logged topic, named by a file."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
from pathlib import Path

from services.auth.administration import Administration
from services.auth.domain import names
from services.auth.domain.records import DEFAULT_ACCOUNT, DEFAULT_RETENTION_S, Profile, Topic
from services.auth.domain.resources import Resources
from services.common.errors import AlreadyExistsError

logger = logging.getLogger(__name__)

_RULES = {
    "instance": names.instance_id_fault,
    "access_key": names.access_key_id_fault,
    "group": names.group_id_fault,
    "topic": names.topic_fault,
}


class BootstrapError(Exception):
    """A bootstrap file that can't be used; says which file and why, without its secret."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """Content of the file."""

    instance: str
    access_key: str
    secret: str = dataclasses.field(repr=False)
    group: str
    topic: str


def read(path: Path) -> Bootstrap:
    """Read and check the file.

    Raises:
        BootstrapError: it can't be used.
    """
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BootstrapError(f"can't read the bootstrap file {path}: {error.strerror}") from error
    except ValueError as error:
        raise BootstrapError(f"the bootstrap file {path} is not JSON") from error
    fields = [field.name for field in dataclasses.fields(Bootstrap)]
    if not isinstance(body, dict) or any(not isinstance(body.get(name), str) or not body[name] for name in fields):
        raise BootstrapError(f"the bootstrap file {path} must be an object with the texts {', '.join(fields)}")
    for name, fault_of in _RULES.items():
        if fault := fault_of(body[name]):
            raise BootstrapError(f"the bootstrap file {path}: {name} {fault}")
    return Bootstrap(**{name: body[name] for name in fields})


async def bootstrap(path: Path, administration: Administration, resources: Resources) -> None:
    """Make what the file names, unless there is an instance already. Never overwrites.

    The instance comes last, so that after a crash the next start still finds none and makes what is missing.

    Raises:
        BootstrapError: the file can't be used.
        UnavailableError: NATS does not answer.
    """
    if resources.instances():
        return
    content = read(path)
    instance_id = content.instance
    with contextlib.suppress(AlreadyExistsError):
        await administration.put_access_key(instance_id, content.access_key, DEFAULT_ACCOUNT, secret=content.secret)
    with contextlib.suppress(AlreadyExistsError):
        await administration.put_group(instance_id, content.group, DEFAULT_ACCOUNT)
    with contextlib.suppress(AlreadyExistsError):
        topic = Topic(
            instance_id=instance_id,
            topic=content.topic,
            account_id=DEFAULT_ACCOUNT,
            logged=True,
            ordered=False,
            retention_s=DEFAULT_RETENTION_S,
        )
        await administration.put_topic(topic)
    with contextlib.suppress(AlreadyExistsError):
        await administration.create_instance(instance_id, Profile.LMQ, anonymous=False)
    logger.info("first instance made", extra={"instance": instance_id, "group": content.group, "topic": content.topic})
