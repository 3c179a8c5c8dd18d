"""Set-up of streams, against a JetStream of the test's own."""

from __future__ import annotations

import pytest
from nats.js import api, errors

from services.common.jetstream import ensure_stream


class FakeJetStream:
    """Has one stream, made before with three replicas: a real one needs a cluster for that."""

    def __init__(self) -> None:
        self.updated: api.StreamConfig | None = None

    async def add_stream(self, config: api.StreamConfig) -> None:
        raise errors.BadRequestError(code=400, err_code=10058, description="stream name already in use")

    async def stream_info(self, name: str) -> api.StreamInfo:
        config = api.StreamConfig(name=name, num_replicas=3)
        return api.StreamInfo(config=config, state=api.StreamState(0, 0, 0, 0, 0))

    async def update_stream(self, config: api.StreamConfig) -> None:
        self.updated = config


@pytest.mark.asyncio
async def test_replicas_that_an_operator_set_stay() -> None:
    fake = FakeJetStream()
    await ensure_stream(fake, api.StreamConfig(name="S", subjects=["s"], max_age=5))  # type: ignore[arg-type]  # a fake
    assert fake.updated is not None
    assert (fake.updated.num_replicas, fake.updated.subjects, fake.updated.max_age) == (3, ["s"], 5)
