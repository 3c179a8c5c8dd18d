"""A service is one process type of the mesh, started as `python -m services.<name>`."""

from services import compiled

compiled.install()  # before any module of the hot path is imported
