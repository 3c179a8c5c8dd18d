"""A service is one process type of the mesh, started as `python -m services.<name>`."""
