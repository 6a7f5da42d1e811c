"""What logs hide, and what they must not hide."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chassis.log import mask


def logged(text):
    return mask(None, "", {"event": text})["event"]


@pytest.mark.parametrize(
    "number",
    [
        "13912345678",
        "+86 139 1234 5678",
        "6222 0212 3456 7890",
        "110101199003074514",
        "020-1234-5678",
        "2026-11-25-7",
        "2003-04-05",
    ],
)
def test_numbers_of_people_are_hidden(number):
    assert logged(f"called {number}, busy") == f"called {number[:2]}***, busy"


@given(st.datetimes(datetime(2024, 1, 1), datetime(2099, 12, 31)))
def test_moments_and_versions_stay_readable(moment):
    for text in (
        f"ruleset {moment:%Y-%m-%d}.1 in force",
        f"due {moment.replace(tzinfo=UTC).isoformat()} sharp",
        f"due {moment:%Y-%m-%d %H:%M} sharp",
    ):
        assert logged(text) == text


def test_numbers_of_people_are_hidden_wherever_they_stand_and_counts_are_not():
    found = logged({"calls": ["from 13912345678"], "13912345678": {"to": ("020-1234-5678", 13912345678)}})
    assert found == {"calls": ["from 13***"], "13***": {"to": ["02***", 13912345678]}}
