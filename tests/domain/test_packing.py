"""Headers and timers as they are kept in the database: what goes in comes out."""

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from chassis.outbox import pack, unpack
from chassis.plan import read_timers, timers_text

NAMES = st.text(max_size=20)
VALUES = st.none() | st.binary(max_size=40)


@given(st.lists(st.tuples(NAMES, VALUES), max_size=12))
def test_headers_come_out_as_they_went_in_and_separators_become_question_marks(headers):
    shown = [
        (name.replace("\x1e", "?").replace("\x1f", "?"), (value or b"").replace(b"\x1e", b"?"))
        for name, value in headers
    ]
    assert unpack(pack(headers)) == shown


@given(
    st.dictionaries(
        st.from_regex(r"[a-z]+(-[a-z]+)?", fullmatch=True), st.datetimes(timezones=st.just(UTC)), max_size=4
    )
)
def test_timers_come_out_as_they_went_in(timers: dict[str, datetime]):
    assert read_timers(timers_text(timers)) == timers
