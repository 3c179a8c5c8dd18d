"""Measurements of the mesh, side by side with other brokers."""
