"""Metrics of auth, beside those of the process."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

ATTEMPTS = Counter("weimq_auth_attempts", "Connection attempts checked, by outcome.", ["outcome"])
TOKENS = Counter("weimq_auth_token_checks", "Tokens of connected clients checked, by code.", ["code"])
QUERIES = Counter("weimq_auth_queries", "Signed queries checked, by outcome.", ["outcome"])
WATCHERS = Gauge("weimq_auth_watchers", "Open WatchResources streams.")
RESOURCES = Gauge("weimq_auth_resources", "Stored resources in memory.")
READS = Counter("weimq_auth_full_reads", "Full readings of a bucket.", ["bucket"])
DEVICES = Gauge("weimq_auth_device_credentials", "Device credentials in memory.")
REVOKED_TOKENS = Gauge("weimq_auth_revoked_tokens", "Revoked tokens that have not expired.")
TOKEN_CALLS = Counter(
    "weimq_auth_token_http", "Calls of the token HTTP API, by path and code of the body.", ["path", "code"]
)
