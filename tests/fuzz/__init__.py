"""Hostile bytes for every parser that strangers reach: targets, a corpus and a driver; `make fuzz` runs them."""
