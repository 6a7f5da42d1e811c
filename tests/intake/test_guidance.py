"""What a caller is told, in which order; and when agents answer."""

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from services.intake.door.cases import STATES
from services.intake.waiting.estimate import Estimate
from services.intake.waiting.guidance import OpenCase, Situation, guide, reason_of
from services.intake.waiting.hours import HOURS, BadHours, Calendar, callback_words, load_hours, opening_words
from services.intake.waiting.knowledge import load_knowledge
from services.intake.waiting.wording import tell

SHANGHAI = ZoneInfo("Asia/Shanghai")
NOW = datetime(2026, 11, 25, 10, 0, tzinfo=SHANGHAI)
FOUR_TO_EIGHT = Estimate(timedelta(minutes=4), timedelta(minutes=8), "history")


@pytest.fixture(scope="module")
def knowledge():
    return load_knowledge()


@pytest.fixture(scope="module")
def hours():
    return load_hours()


def local(*moment):
    return datetime(*moment, tzinfo=SHANGHAI)


# ---------------------------------------------------------------- what is said


def test_everything_there_is_to_say_comes_in_this_order(knowledge):
    told = guide(
        Situation(
            language="zh",
            now=NOW,
            open=False,
            next_opening=local(2026, 11, 26, 8, 30),
            position=3,
            estimate=FOUR_TO_EIGHT,
            callback_offered=True,
            open_case=OpenCase(
                "C-20261123-004217", "in_progress", datetime(2026, 11, 24, 17, tzinfo=UTC), "lending"
            ),
            question="房贷可以提前还吗",
        ),
        knowledge,
    )
    assert [prompt.kind for prompt in told.say] == [
        "greeting", "hours", "wait", "case", "answer", "callback", "menu",
    ]  # fmt: skip
    assert told.text("hours") == "现在是非工作时间，人工服务将于明天（11月26日星期四）08:30开始。"
    assert told.text("wait") == "您前面还有2位。预计等待约5分钟，一般不超过10分钟。"
    # 17:00 in London is the next day in Shanghai, and the caller is there.
    assert told.text("case") == "关于您的事项，编号C-20261123-004217：信贷部正在办理，最近更新于11月25日。"
    assert told.text("answer") == knowledge.articles["loan-prepayment"].zh.answer
    assert told.text("callback") == "如果不想等候，请按9：我们会给您回电，并保留您的排队位置。"
    assert told.text("menu").startswith("请选择来电原因：银行卡")


def test_the_figures_are_those_that_were_said(knowledge):
    told = guide(Situation("en", NOW, open=True, position=3, estimate=FOUR_TO_EIGHT), knowledge)
    assert told.text("wait") == (
        "You are number 3 in the queue. The wait is about 5 minutes, most likely less than 10 minutes."
    )
    figures = told.model_dump(exclude={"say", "reasons"})
    assert figures == {
        "language": "en",
        "open": True,
        "position": 3,
        "estimate_ms": 240_000,
        "about_ms": 300_000,
        "at_most_ms": 600_000,
        "basis": "history",
        "unknown_because": None,
        "answers": (),
        "knowledge": knowledge.version,
        "callback_digit": None,
    }
    assert type(told).model_validate_json(told.model_dump_json()) == told


def test_what_is_not_known_is_said_to_be_unknown(knowledge):
    told = guide(Situation("en", NOW, open=True, position=1), knowledge)
    assert told.text("wait") == (
        "You are next. We cannot say yet how long it takes: too few calls have been answered lately."
    )
    assert (told.estimate_ms, told.at_most_ms, told.basis, told.unknown_because) == (
        None, None, "unknown", "no_history",
    )  # fmt: skip


def test_who_is_in_no_queue_hears_of_no_place(knowledge):
    closed = Situation("en", NOW, open=False, next_opening=local(2026, 11, 25, 13), callback_offered=True)
    told = guide(closed, knowledge)
    assert [prompt.kind for prompt in told.say] == ["greeting", "hours", "callback", "menu"]
    assert told.text("hours") == "Our agents are not at work now. They are back today at 13:00."
    assert told.text("callback") == "If you would like us to call you back, press 9."
    assert (told.position, told.basis, told.unknown_because) == (None, "unknown", "closed")
    elsewhere = guide(Situation("en", NOW, open=True), knowledge)
    assert (elsewhere.position, elsewhere.unknown_because) == (None, "not_in_queue")


def test_a_caller_is_greeted_once_and_told_of_a_broken_promise(knowledge):
    before = tell(Estimate(timedelta(minutes=1), timedelta(minutes=2), "history"), 1, "en")
    late = Situation(
        "en", NOW, open=True, position=1, estimate=FOUR_TO_EIGHT, before=before, since=timedelta(minutes=3)
    )
    told = guide(late, knowledge)
    assert [prompt.kind for prompt in told.say] == ["wait", "menu"]
    assert "We are sorry, it takes longer than we said." in told.text("wait")


@pytest.mark.parametrize(
    ("language", "question", "kind", "article"),
    [
        ("en", "I have lost my card", "answer", "card-lost"),
        ("zh", "卡丢了", "answer", "card-lost"),
        ("en", "how do I cook rice", "nothing_found", None),
        ("zh", "红烧肉要炖多久", "nothing_found", None),
    ],
)
def test_a_question_is_answered_or_said_to_have_no_answer(knowledge, language, question, kind, article):
    told = guide(Situation(language, NOW, open=True, question=question), knowledge)
    assert [prompt.kind for prompt in told.say] == ["greeting", kind, "menu"]
    assert told.answers == ((article,) if article else ())


@pytest.mark.parametrize(
    ("language", "agent"), [("en", "An agent will take care of it."), ("zh", "坐席接通后会为您处理。")]
)
def test_an_agent_is_promised_only_where_one_works(knowledge, language, agent):
    asked = Situation(language, NOW, open=True, question="xyzzy")
    after_hours = replace(asked, open=False)
    assert guide(asked, knowledge).text("nothing_found").endswith(agent)
    assert guide(replace(after_hours, position=1), knowledge).text("nothing_found").endswith(agent)
    alone = guide(after_hours, knowledge).text("nothing_found")
    assert alone
    assert agent not in alone


@pytest.mark.parametrize(
    ("state", "department", "language", "said"),
    [
        ("waiting", "cards", "en", "the cards department is waiting for further papers"),
        ("routed", "triage", "zh", "已转交相关部门"),
        ("parked", None, "en", "we are finding the responsible department"),
        ("resolved", "fraud", "zh", "已有结果，我们会通知您"),
        ("answered", None, "en", "it was answered during your call"),
        ("rejected", None, "zh", "不属于本行受理范围，我们会向您说明原因"),
        ("withdrawn", "cards", "en", "you have withdrawn it"),
        ("transferred", "cards", "en", "it is being passed on to another department"),
        ("closed", "cards", "zh", "已结案"),
        ("some-later-state", "cards", "en", "it is being worked on"),
    ],
)
def test_the_state_of_a_case_is_said_in_the_customers_words(knowledge, state, department, language, said):
    case = OpenCase("C-1", state, NOW, department)
    told = guide(Situation(language, NOW, open=True, open_case=case), knowledge)
    assert said in told.text("case")


@pytest.mark.parametrize("language", ["zh", "en"])
@pytest.mark.parametrize("state", sorted(set(STATES.values())))
def test_every_state_of_a_case_has_words_of_its_own(knowledge, state, language):
    def said(state):
        case = OpenCase("C-1", state, NOW, "cards")
        return guide(Situation(language, NOW, open=True, open_case=case), knowledge).text("case")

    assert said(state) != said("some-later-state")


@pytest.mark.parametrize(
    ("language", "said"),
    [
        ("en", "About your case, number C-1: you have been told the result. It was last updated on "),
        ("zh", "关于您的事项，编号C-1：结果已告知您，最近更新于"),
    ],
)
def test_a_case_with_a_result_is_not_called_open(knowledge, language, said):
    told = guide(Situation(language, NOW, open=True, open_case=OpenCase("C-1", "told", NOW)), knowledge)
    assert told.text("case").startswith(said)


@pytest.mark.parametrize(
    ("said", "language", "topic"),
    [
        ("5", "zh", "loans"),
        ("５", "zh", "loans"),
        (" 1 ", "en", "cards"),
        ("0", "en", "other"),
        ("9", "en", "other"),
        ("55", "en", "other"),
        ("", "en", "other"),
        ("*", "zh", "other"),
        ("我要投诉", "zh", "complaints"),
        ("贷款", "zh", "loans"),
        ("someone stole my card", "en", "cards"),
        ("euros", "en", "wealth"),
        ("the cat climbed on the roof", "en", "other"),
    ],
)
def test_a_reason_is_a_digit_or_words(knowledge, said, language, topic):
    assert reason_of(said, language, knowledge) == topic


def test_every_digit_of_the_menu_leads_to_its_topic(knowledge):
    for language in ("zh", "en"):
        told = guide(Situation(language, NOW, open=True, callback_offered=True), knowledge)
        assert len(told.reasons) == len(knowledge.topics) == 9
        for choice in told.reasons:
            assert reason_of(choice.digit, language, knowledge) == choice.topic
            assert choice.text in told.text("menu")
        assert told.callback_digit not in {choice.digit for choice in told.reasons}


# ---------------------------------------------------------------- when agents answer


@pytest.mark.parametrize(
    ("queue", "at", "opens"),
    [
        ("online", local(2026, 11, 25, 8, 29), local(2026, 11, 25, 8, 30)),
        ("online", local(2026, 11, 25, 20, 0), local(2026, 11, 26, 8, 30)),
        ("online", local(2026, 11, 28, 12, 0), local(2026, 11, 28, 13, 0)),  # Saturday's break
        ("online", local(2026, 9, 30, 20, 1), local(2026, 10, 8, 8, 30)),  # the National Day holiday
        ("loans", local(2026, 10, 9, 18, 0), local(2026, 10, 10, 9, 0)),  # a Saturday worked in exchange
        ("loans", local(2026, 11, 27, 18, 0), local(2026, 11, 30, 9, 0)),  # an ordinary weekend
    ],
)
def test_a_closed_queue_opens_next(hours, queue, at, opens):
    assert not hours.is_open(queue, at)
    assert hours.next_opening(queue, at) == opens
    assert hours.is_open(queue, opens)
    assert not hours.is_open(queue, opens - timedelta(minutes=1))


@pytest.mark.parametrize("at", [local(2026, 10, 1, 3), datetime(2026, 2, 15, tzinfo=UTC)])
def test_losses_and_fraud_are_answered_day_and_night(hours, at):
    for queue in ("fraud", "cards"):
        assert hours.is_open(queue, at)
        assert hours.next_opening(queue, at) == at


def test_the_last_minute_is_open_and_the_next_is_not(hours):
    assert hours.is_open("online", local(2026, 11, 25, 19, 59, 59))
    assert not hours.is_open("online", local(2026, 11, 25, 20, 0, 0))
    assert hours.is_open("online", datetime(2026, 11, 25, 0, 30, tzinfo=UTC))


def test_who_asks_to_be_called_back_is_told_when():
    assert callback_words("en", NOW + timedelta(days=4), NOW).startswith("Thank you. We call you back on ")
    assert callback_words("zh", NOW, NOW) == f"好的，我们会在今天{NOW:%H:%M}给您回电，您的排队位置已保留。"


def test_hours_that_never_come_have_no_next_opening():
    never = calendar("UTC", {})
    assert never.next_opening(NOW) is None
    assert opening_words("en", None, NOW) == (
        "Our agents are not at work now, and we cannot say when they will be."
    )


def opening(queue, *moment):
    """In UTC, because a time that the wall clock shows twice equals no time of another zone."""
    return queue.next_opening(datetime(*moment, tzinfo=UTC)).astimezone(UTC)


def test_an_hour_that_the_clocks_skip_is_not_open_and_one_they_repeat_is_open_twice():
    berlin = calendar("Europe/Berlin", {day: ["02:30-02:45"] for day in DAYS})
    # On 29 March clocks go from 02:00 to 03:00, on 25 October from 03:00 back to 02:00, at 01:00 UTC.
    assert opening(berlin, 2026, 3, 28, 12) == datetime(2026, 3, 30, 0, 30, tzinfo=UTC)
    assert opening(berlin, 2026, 10, 25, 0, 0) == datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    assert opening(berlin, 2026, 10, 25, 0, 45) == datetime(2026, 10, 25, 1, 30, tzinfo=UTC)


def test_hours_that_begin_in_the_skipped_hour_begin_when_it_is_over():
    berlin = calendar("Europe/Berlin", {"sun": ["02:30-05:00"]})
    assert opening(berlin, 2026, 3, 28, 12) == datetime(2026, 3, 29, 1, 0, tzinfo=UTC)


DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def calendar(tz, week, closed=(), working=()):
    return Calendar.model_validate(
        {"tz": tz, "week": {day: week.get(day, []) for day in DAYS}, "closed": closed, "working": working}
    )


@st.composite
def weeks(draw):
    week = {}
    for day in DAYS:
        edges = sorted(draw(st.sets(st.integers(0, 96), max_size=6)))
        edges = edges[: len(edges) // 2 * 2]
        clock = [f"{edge // 4:02}:{edge % 4 * 15:02}" for edge in edges]
        week[day] = [f"{first}-{last}" for first, last in zip(clock[::2], clock[1::2], strict=True)]
    return week


@given(
    tz=st.sampled_from(["Asia/Shanghai", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Africa/Cairo"]),
    week=weeks(),
    start=st.sampled_from(
        [date(2026, 3, 6), date(2026, 3, 27), date(2026, 4, 3), date(2026, 4, 22), date(2026, 10, 2),
         date(2026, 10, 23), date(2026, 10, 29), date(2026, 10, 30), date(2026, 7, 1)]
    ),
    minute=st.integers(0, 3 * 24 * 60),
    shut=st.integers(0, 4),
    worked=st.integers(0, 4),
)  # fmt: skip
def test_the_next_opening_is_the_one_a_minute_by_minute_walk_finds(tz, week, start, minute, shut, worked):
    zone = ZoneInfo(tz)
    closed_day, working_day = start + timedelta(days=shut), start + timedelta(days=worked)
    working = [{"date": working_day, "like": "mon"}] if working_day != closed_day else []
    queue = calendar(tz, week, [{"first": closed_day, "last": closed_day, "zh": "x", "en": "x"}], working)

    def opened(at):
        wall = at.astimezone(zone)
        if wall.date() == closed_day:
            return False
        day = "mon" if working and wall.date() == working_day else DAYS[wall.weekday()]
        clock = f"{wall:%H:%M}"
        return any(span[:5] <= clock < span[6:] for span in week[day])

    at = datetime(start.year, start.month, start.day, tzinfo=UTC) + timedelta(minutes=minute)
    walk = (at + timedelta(minutes=step) for step in range(3 * 24 * 60))
    found = next((moment for moment in walk if opened(moment)), None)
    assert queue.is_open(at) == opened(at)
    told = queue.next_opening(at)
    if found is not None:
        assert told is not None
        assert told.astimezone(UTC) == found
    else:
        assert told is None or told >= at + timedelta(days=3)


@pytest.mark.parametrize(
    ("own", "problem"),
    [
        ({"week": {"mon": []}}, "night: file: Value error, week.tue is missing"),
        ({"week": {**dict.fromkeys(DAYS, ()), "mon": ["22:00-02:00"]}}, "split it at midnight"),
        ({"week": {**dict.fromkeys(DAYS, ()), "mon": ["8-17"]}}, "'8-17' is no interval"),
        ({"week": {**dict.fromkeys(DAYS, ()), "mon": ["09:00-12:00", "11:00-13:00"]}}, "overlap"),
        ({"week": {**dict.fromkeys(DAYS, ()), "mon": ["09:00-24:30"]}}, "'09:00-24:30' does not end"),
        ({"tz": "Asia/Pekin"}, "'Asia/Pekin' is no time zone"),
        ({"holidays": []}, "night: holidays: Extra inputs are not permitted"),
        ({"working": [{"date": "2026-10-01", "like": "mon"}]}, "2026-10-01 is both worked and closed"),
        ({"closed": [{"first": "2026-10-02", "last": "2026-10-01", "zh": "", "en": ""}]}, "before the first"),
    ],
)
def test_wrong_hours_are_refused_with_their_place(tmp_path, own, problem):
    content = yaml.safe_load(HOURS.read_text("utf-8"))
    content["queues"]["night"] = own
    path = tmp_path / "hours.yaml"
    path.write_text(yaml.safe_dump(content), "utf-8")
    with pytest.raises(BadHours) as raised:
        load_hours(path)
    assert problem in str(raised.value)
    assert str(path) in str(raised.value)
    assert "night" in str(raised.value)


def test_a_missing_hours_file_is_named(tmp_path):
    with pytest.raises(BadHours, match=r"nothing\.yaml"):
        load_hours(tmp_path / "nothing.yaml")
