"""Tests of weimq; a package by name, since some wheel on the path brings one called `tests` too."""
