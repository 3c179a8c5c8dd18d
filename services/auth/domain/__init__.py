"""Rules of auth, without I/O: names, records, the in-memory view and the check of credentials."""
