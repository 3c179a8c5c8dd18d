from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.edge.mqtt.codec import encode
from services.edge.mqtt.errors import LocalUseError
from services.edge.mqtt.outbound import OutboundMessage
from services.edge.mqtt.packets import Publish
from tests.unit.edge.mqtt.mqtt_strategies import IDENTIFIER, PAYLOAD, TOPIC


@given(TOPIC, PAYLOAD, st.booleans())
def test_qos0_frame_is_the_publish_packet(topic: str, payload: bytes, retain: bool) -> None:
    message = OutboundMessage(topic.encode(), payload, retain)
    assert message.frame_qos0 == encode(Publish(topic, payload, 0, retain, False, 0))
    assert message.frame_qos0 is message.frame_qos0


@given(TOPIC, PAYLOAD, st.booleans(), st.sampled_from([1, 2]), IDENTIFIER)
@pytest.mark.spec("MQTT-3.3.1-1")
@pytest.mark.spec("MQTT-3.3.1-3")
def test_head_identifier_and_payload_are_the_publish_packet(
    topic: str, payload: bytes, retain: bool, qos: int, identifier: int
) -> None:
    message = OutboundMessage(topic.encode(), payload, retain)
    tail = identifier.to_bytes(2, "big") + payload
    first = message.head(qos) + tail
    again = message.head_dup(qos) + tail
    assert first == encode(Publish(topic, payload, qos, retain, False, identifier))
    assert again == encode(Publish(topic, payload, qos, retain, True, identifier))
    assert message.head(qos) is message.head(qos)


def test_head_is_for_qos_1_and_2_only() -> None:
    for qos in (0, 3):
        with pytest.raises(LocalUseError):
            OutboundMessage(b"a", b"", False).head(qos)
