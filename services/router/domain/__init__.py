"""Interests, routes and gathered deliveries; pure."""
