"""A short run of every fuzz target; `make fuzz` is the long one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.__main__ import run
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_mutations_of_the_corpus_break_nothing(name: str) -> None:
    assert run(name, TARGETS[name], 3000, seed=1) is None


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=200)
@given(data=st.binary(max_size=300))
def test_any_bytes_break_nothing(name: str, data: bytes) -> None:
    TARGETS[name](data)
