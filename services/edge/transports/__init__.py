"""Transports of the edge: everything between a socket and the MQTT protocol.

Each is a layer that is an asyncio protocol towards the socket and a byte-stream transport towards the next one:
PROXY protocol -> TLS -> WebSocket -> MQTT. Plain TCP has none of them and costs nothing. `listen.open_listener` puts
them together.
"""
