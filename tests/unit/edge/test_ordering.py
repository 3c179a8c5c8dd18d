"""`$SYS/enableOrderMsg`."""

from __future__ import annotations

import pytest

from services.edge.commands import Body, CommandError
from services.edge.ordering import enable
from services.edge.ports import Client


@pytest.mark.parametrize("order", ["true", "false", True])
def test_is_answered(order: str | bool) -> None:
    answered: list[bool] = []
    enable(Client(), {"order": order}, lambda: answered.append(True))
    assert answered == [True]


@pytest.mark.parametrize("body", [{}, {"order": "yes"}, {"order": 7}])
def test_other_values_are_refused(body: Body) -> None:
    with pytest.raises(CommandError):
        enable(Client(), body, lambda: pytest.fail("answered"))
