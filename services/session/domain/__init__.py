"""Presence and lifecycle events; pure."""
