"""The bootstrap file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.auth.bootstrap import Bootstrap, BootstrapError, read

GOOD = {
    "instance": "mqtt-demo",
    "access_key": "AKdemo",
    "secret": "very-secret",
    "group": "GID_demo",
    "topic": "demo",
}


def test_a_good_file(tmp_path: Path) -> None:
    path = tmp_path / "bootstrap.json"
    path.write_text(json.dumps(GOOD | {"comment": "ignored"}))
    assert read(path) == Bootstrap(**GOOD)
    assert "very-secret" not in repr(read(path))


@pytest.mark.parametrize(
    "change",
    [{"instance": "x"}, {"access_key": "a b"}, {"group": "demo"}, {"topic": "a/b"}, {"secret": ""}, {"secret": 7}],
)
def test_a_file_that_breaks_a_rule_is_named_without_its_secret(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "bootstrap.json"
    path.write_text(json.dumps(GOOD | change))
    with pytest.raises(BootstrapError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "very-secret" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", json.dumps({"instance": "mqtt-demo"})])
def test_a_file_of_another_form(tmp_path: Path, content: str) -> None:
    path = tmp_path / "bootstrap.json"
    path.write_text(content)
    with pytest.raises(BootstrapError, match=r"bootstrap\.json"):
        read(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(BootstrapError, match="can't read"):
        read(tmp_path / "none")
