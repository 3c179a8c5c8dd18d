"""Fixtures and fakes that several test packages use."""
