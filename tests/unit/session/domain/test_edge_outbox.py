"""What is gathered for an edge."""

from __future__ import annotations

import pytest

from services.session.domain.outbox import Outbox

GIVEN_UP = ("", b"")
MESSAGE = ("a/b", b"payload")


@pytest.mark.parametrize("given", [(GIVEN_UP, MESSAGE), (MESSAGE, GIVEN_UP)])
def test_a_message_that_one_session_lost_comes_to_another(given: tuple[tuple[str, bytes], ...]) -> None:
    outbox: Outbox[object] = Outbox("edge", lambda: None)
    for number, (topic, payload) in enumerate((*given, *given)):
        outbox.add(f"channel-{number}", 7, topic, payload, 1, 0)
    batch = outbox.take()
    assert batch is not None
    topics = list(batch.topic_index)
    assert [(topics[batch.topic_indexes[each]], batch.payloads[each]) for each in batch.message_indexes] == [
        *given,
        *given,
    ]
    assert len(batch.payloads) == 2, "each once"
