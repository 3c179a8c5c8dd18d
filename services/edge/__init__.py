"""The edge: speaks MQTT to clients and batches to the mesh; owns connections, decides nothing."""
