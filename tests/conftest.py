"""Fixtures and settings of every test."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import hypothesis
import pytest
import uvloop

pytest_plugins = ["tests.support.mesh", "tests.support.nats", "tests.support.nats_cluster"]

hypothesis.settings.register_profile("default", deadline=None, max_examples=100)
hypothesis.settings.load_profile("default")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Take what the chaos tests are asked for."""
    parser.addoption("--nats-nodes", type=int, default=1, help="NATS servers of the chaos tests: 1, 3 or 5")


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run async tests on the loop that the services run on."""
    return {"uvloop": uvloop.new_event_loop}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the long runs to those who ask for them: `pytest -m chaos`."""
    if not config.option.markexpr:
        chosen = [item for item in items if item.get_closest_marker("chaos") is None]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen
    if hasattr(config, "workerinput"):
        # What takes longest comes first, so that the workers end together.
        places = {"e2e": 0, "clients": 0, "chaos": 1, "conformance": 1, "contract": 1}
        items.sort(key=lambda item: places.get(item.path.parent.name, 2))
