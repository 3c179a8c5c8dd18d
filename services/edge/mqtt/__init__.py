"""Sans-IO core of MQTT 3.1 and 3.1.1: bytes in, events out, time is an argument."""
