"""What a waiting caller is told, in which order, and the menu by which he says why he calls. Pure."""

import unicodedata
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from pydantic import BaseModel, ConfigDict

from schemas.case import Language
from schemas.envelope import Code
from services.intake.waiting.estimate import Estimate
from services.intake.waiting.hours import opening_words, spoken_date
from services.intake.waiting.knowledge import OTHER, Hit, Knowledge
from services.intake.waiting.wording import Told, tell


@dataclass(frozen=True, slots=True)
class OpenCase:
    """An earlier matter of the caller; `state` is one of the desk's words for how it stands.

    `department` is the code of the one that has it, or had it last.

    Whoever fills it in answers for the caller being allowed to hear it.
    """

    case_no: str
    state: str
    updated_at: datetime
    department: str | None = None


@dataclass(frozen=True, slots=True)
class Situation:
    """What is known of a caller who is told something; `now` in the zone in which times are said.

    `position` 1 is next; None: in no queue. `before` is what he was told last, `since` how long ago.
    `question` is in his own words.
    """

    language: Language
    now: datetime
    open: bool
    next_opening: datetime | None = None
    position: int | None = None
    estimate: Estimate | None = None
    before: Told | None = None
    since: timedelta = timedelta(0)
    callback_offered: bool = False
    open_case: OpenCase | None = None
    question: str | None = None


class Prompt(BaseModel):
    """One thing to say."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["greeting", "hours", "wait", "case", "answer", "nothing_found", "callback", "menu"]
    text: str


class Choice(BaseModel):
    """One digit of the menu of reasons."""

    model_config = ConfigDict(frozen=True)

    digit: str
    topic: Code
    text: str


class Guidance(BaseModel):
    """What to say, in order, and the figures in it; None: not known, and not said.

    `estimate_ms` is the estimate itself, `about_ms` and `at_most_ms` are what was named; `unknown_because`
    says why there is none: the estimate's reason, `not_in_queue`, or `closed` where also nobody works.
    `answers` are ids of the articles in `knowledge`, the version of their file.
    """

    model_config = ConfigDict(frozen=True)

    language: Language
    open: bool
    say: tuple[Prompt, ...]
    position: int | None
    estimate_ms: int | None
    about_ms: int | None
    at_most_ms: int | None
    basis: Code
    unknown_because: Code | None
    answers: tuple[Code, ...]
    knowledge: Code
    callback_digit: str | None
    reasons: tuple[Choice, ...]

    def text(self, *kinds: str) -> str:
        """Join what is said, all or of some kinds."""
        return "\n".join(prompt.text for prompt in self.say if not kinds or prompt.kind in kinds)


def guide(situation: Situation, knowledge: Knowledge) -> Guidance:
    """Compose what a caller is told: hours, wait, open case, answer, callback, menu of reasons."""
    language = situation.language
    estimate = situation.estimate or Estimate(None, None, "unknown", "no_history")
    told = _told(situation, estimate)
    hits = knowledge.search(situation.question, language, limit=1) if situation.question else []
    reasons = tuple(
        Choice(digit=topic.digit, topic=topic.code, text=topic.zh if language == "zh" else topic.en)
        for topic in knowledge.topics
    )
    digit = knowledge.callback_digit if situation.callback_offered else None
    return Guidance(
        language=language,
        open=situation.open,
        say=(
            *_opening(situation),
            *_wait(told),
            *_case(situation),
            *_answer(situation, hits),
            *_callback(situation, digit),
            Prompt(kind="menu", text=_menu(reasons, language)),
        ),
        position=situation.position,
        estimate_ms=_ms(estimate.expected),
        about_ms=_ms(told.about) if told else None,
        at_most_ms=told.at_most_ms if told else None,
        basis=estimate.basis,
        unknown_because=estimate.reason if told else "not_in_queue" if situation.open else "closed",
        answers=tuple(hit.id for hit in hits),
        knowledge=knowledge.version,
        callback_digit=digit,
        reasons=reasons,
    )


def reason_of(said: str, language: Language, knowledge: Knowledge) -> str:
    """Name the topic of a digit or of words; "other" where neither tells one."""
    said = unicodedata.normalize("NFKC", said).strip()
    if len(said) == 1 and said.isdigit():
        return knowledge.topic_of_digit(said)
    hits = knowledge.search(said, language, limit=1)
    return knowledge.articles[hits[0].id].topic if hits else OTHER


def _told(situation: Situation, estimate: Estimate) -> Told | None:
    if situation.position is None:
        return None
    return tell(
        estimate, situation.position - 1, situation.language, before=situation.before, since=situation.since
    )


def _opening(situation: Situation) -> list[Prompt]:
    language = situation.language
    prompts = []
    if situation.before is None:
        prompts.append(Prompt(kind="greeting", text=_GREETING[language]))
    if not situation.open:
        words = opening_words(language, situation.next_opening, situation.now)
        prompts.append(Prompt(kind="hours", text=words))
    return prompts


def _wait(told: Told | None) -> list[Prompt]:
    return [Prompt(kind="wait", text=told.text)] if told else []


def _case(situation: Situation) -> list[Prompt]:
    case, language = situation.open_case, situation.language
    if case is None:
        return []
    department = _DEPARTMENTS.get(case.department or "", _SOME_DEPARTMENT)[language]
    state = _STATES.get(case.state, _IN_WORK)[language].format(department=department)
    day = spoken_date(language, case.updated_at.astimezone(situation.now.tzinfo).date())
    text = _CASE[language].format(case_no=case.case_no, state=state, day=day)
    return [Prompt(kind="case", text=text)]


def _answer(situation: Situation, hits: list[Hit]) -> list[Prompt]:
    if not situation.question:
        return []
    if not hits:
        attended = situation.open or situation.position is not None
        words = _NOTHING_FOUND if attended else _NOTHING_FOUND_AFTER_HOURS
        return [Prompt(kind="nothing_found", text=words[situation.language])]
    return [Prompt(kind="answer", text=hit.answer) for hit in hits]


def _callback(situation: Situation, digit: str | None) -> list[Prompt]:
    if digit is None:
        return []
    words = _CALLBACK if situation.position is not None else _CALLBACK_LATER
    return [Prompt(kind="callback", text=words[situation.language].format(digit=digit))]


def _menu(reasons: tuple[Choice, ...], language: Language) -> str:
    if language == "zh":
        return "请选择来电原因：" + "；".join(f"{one.text}，请按{one.digit}" for one in reasons) + "。"
    return "Tell us why you call: " + "; ".join(f"for {one.text}, press {one.digit}" for one in reasons) + "."


def _ms(span: timedelta | None) -> int | None:
    return None if span is None else span // timedelta(milliseconds=1)


_GREETING = {"zh": "您好，这里是客户服务热线。", "en": "Hello, this is the customer hotline."}
_NOTHING_FOUND = {
    "zh": "抱歉，没有找到与您的问题相符的解答，坐席接通后会为您处理。",
    "en": "Sorry, we found no answer to your question. An agent will take care of it.",
}
_NOTHING_FOUND_AFTER_HOURS = {
    "zh": "抱歉，没有找到与您的问题相符的解答。",
    "en": "Sorry, we found no answer to your question.",
}
_CALLBACK = {
    "zh": "如果不想等候，请按{digit}：我们会给您回电，并保留您的排队位置。",
    "en": "If you would rather not wait, press {digit}: we call you back and you keep your place.",
}
_CALLBACK_LATER = {
    "zh": "如需我们给您回电，请按{digit}。",
    "en": "If you would like us to call you back, press {digit}.",
}
_CASE = {
    "zh": "关于您的事项，编号{case_no}：{state}，最近更新于{day}。",
    "en": "About your case, number {case_no}: {state}. It was last updated on {day}.",
}
_IN_WORK: dict[Language, str] = {"zh": "正在处理", "en": "it is being worked on"}
_ASSIGNING: dict[Language, str] = {
    "zh": "正在确定办理部门",
    "en": "we are finding the responsible department",
}
_RESOLVED: dict[Language, str] = {
    "zh": "已有结果，我们会通知您",
    "en": "there is a result, and we will tell you",
}
_STATES: dict[str, dict[Language, str]] = {
    "recorded": {"zh": "已登记", "en": "it is recorded"},
    "parked": _ASSIGNING,
    "returned": _ASSIGNING,
    "transferred": {"zh": "正在转交其他部门", "en": "it is being passed on to another department"},
    "routed": {"zh": "已转交{department}", "en": "it has been passed to {department}"},
    "delivered": {"zh": "已送达{department}，等待受理", "en": "it has reached {department}"},
    "in_progress": {"zh": "{department}正在办理", "en": "{department} is working on it"},
    "waiting": {"zh": "{department}正在等待补充材料", "en": "{department} is waiting for further papers"},
    "answered": {"zh": "已在通话中为您解答", "en": "it was answered during your call"},
    "rejected": {
        "zh": "不属于本行受理范围，我们会向您说明原因",
        "en": "it is not a matter for our bank, and we will tell you why",
    },
    "withdrawn": {"zh": "已按您的要求撤回", "en": "you have withdrawn it"},
    "resolved": _RESOLVED,
    "due": _RESOLVED,
    "unreached": {"zh": "已有结果，但没能联系上您", "en": "there is a result, but we could not reach you"},
    "told": {"zh": "结果已告知您", "en": "you have been told the result"},
    "reopened": {"zh": "已重新办理", "en": "it has been reopened"},
    "closed": {"zh": "已结案", "en": "it is closed"},
}
_SOME_DEPARTMENT: dict[Language, str] = {"zh": "相关部门", "en": "the responsible department"}
_DEPARTMENTS: dict[str, dict[Language, str]] = {
    "cards": {"zh": "银行卡部", "en": "the cards department"},
    "fraud": {"zh": "风险管理部", "en": "the risk department"},
    "digital": {"zh": "电子银行部", "en": "the digital banking department"},
    "lending": {"zh": "信贷部", "en": "the lending department"},
    "payments": {"zh": "支付结算部", "en": "the payments department"},
    "branches": {"zh": "网点管理部", "en": "the branches department"},
    "wealth": {"zh": "财富管理部", "en": "the wealth department"},
}
