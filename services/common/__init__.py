"""What at least two services share; nothing here names a service."""
