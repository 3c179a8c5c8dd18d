"""Guards `statements.toml`: it is complete, it cites tests that exist and say so, and its gaps only become fewer."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

import pytest

from tests.conformance.exchange import load as load_exchanges
from tests.conformance.manifest import (
    COLLECT_S,
    GAP,
    NOT_APPLICABLE,
    SIDES,
    STATUSES,
    TESTED,
    Statement,
    collect_claims,
    load_gaps,
    load_statements,
)

pytestmark = pytest.mark.timeout(COLLECT_S + 30)

STATEMENTS = load_statements()
BY_ID = {statement.id: statement for statement in STATEMENTS}

# One id is spelled so in the standard.
_ID = re.compile(r"MQTT-(?P<section>\d+\.\d+\.\d+)-(?P<number>\d+)|MQTT-3-8\.3-4")

# How many statements each section of the standard's appendix B has.
SECTIONS = {
    "1.5.3": 3, "2.2.2": 2, "2.3.1": 7,
    "3.1.0": 2, "3.1.2": 24, "3.1.3": 11, "3.1.4": 5, "3.2.0": 1, "3.2.2": 6,
    "3.3.1": 12, "3.3.2": 3, "3.3.4": 1, "3.3.5": 2, "3.6.1": 1,
    "3.8.1": 1, "3.8.3": 4, "3.8.4": 6, "3.9.3": 2, "3.10.1": 1, "3.10.3": 2, "3.10.4": 6,
    "3.12.4": 1, "3.14.1": 1, "3.14.4": 3,
    "4.1.0": 2, "4.3.1": 1, "4.3.2": 2, "4.3.3": 2, "4.4.0": 1, "4.5.0": 2, "4.6.0": 6,
    "4.7.1": 3, "4.7.2": 1, "4.7.3": 4, "4.8.0": 2,
    "6.0.0": 4, "7.0.0": 2, "7.1.1": 1, "7.1.2": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def claims(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    return collect_claims(tmp_path_factory.mktemp("conformance") / "claims.json")


def _position(statement: Statement) -> tuple[str, int]:
    found = _ID.fullmatch(statement.id)
    assert found is not None, statement.id
    return ("3.8.3", 4) if found["section"] is None else (found["section"], int(found["number"]))


def test_every_statement_of_the_standard_is_listed_once_and_in_order() -> None:
    sections: defaultdict[str, list[int]] = defaultdict(list)
    for statement in STATEMENTS:
        section, number = _position(statement)
        assert statement.section == section, statement.id
        sections[section].append(number)
    assert dict(sections) == {section: list(range(1, count + 1)) for section, count in SECTIONS.items()}
    assert list(sections) == list(SECTIONS)
    assert len(STATEMENTS) == len(BY_ID) == sum(SECTIONS.values()) == 141


@pytest.mark.parametrize("statement", STATEMENTS, ids=lambda statement: statement.id)
def test_statement_has_all_that_its_status_asks_for(statement: Statement) -> None:
    assert statement.side in SIDES
    assert statement.status in STATUSES
    assert statement.text.strip()
    assert len(set(statement.tests)) == len(statement.tests)
    if statement.status == TESTED:
        assert statement.tests
    else:
        assert statement.reason.strip()
    if statement.status == NOT_APPLICABLE:
        assert not statement.tests


def test_gaps_are_those_of_gaps_txt() -> None:
    gaps = load_gaps()
    assert gaps == [statement.id for statement in STATEMENTS if statement.status == GAP]


def test_cited_tests_exist_and_carry_the_marker(claims: dict[str, list[str]]) -> None:
    wrong = []
    for statement in STATEMENTS:
        for test in statement.tests:
            if test not in claims:
                wrong.append(f"{statement.id}: no test {test}")
            elif statement.id not in claims[test]:
                wrong.append(f"{statement.id}: {test} is not marked with it")
    assert wrong == []


def test_markers_name_statements_of_the_standard(claims: dict[str, list[str]]) -> None:
    assert [f"{test}: {tag}" for test, tags in claims.items() for tag in tags if tag not in BY_ID] == []


def test_exchanges_name_statements_of_the_standard_once() -> None:
    for exchange in load_exchanges():
        assert [tag for tag, count in Counter(exchange.spec).items() if count > 1 or tag not in BY_ID] == [], exchange
