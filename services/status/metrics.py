"""Metrics of status, beside those of the process."""

from __future__ import annotations

from prometheus_client import Counter

QUERIES = Counter(
    "weimq_status_queries", "HTTP queries answered, by HTTP status and code of the body.", ["http", "code"]
)
CALLS = Counter("weimq_status_api_calls", "Calls of the JSON API answered, by HTTP status.", ["http"])
