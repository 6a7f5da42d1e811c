"""What a caller who waits is told about place and time, in Chinese and English. Pure.

Times are rounded up, so nothing sounds shorter than it was estimated; what was told before is taken back
only for a clear improvement, and a promise that is over, or clearly will not hold, is owned.
"""

from bisect import bisect_left
from dataclasses import dataclass
from datetime import timedelta

from schemas.case import Language
from services.intake.waiting.estimate import Estimate

STEPS = tuple(timedelta(seconds=s) for s in (30, 60, 120, 180, 300, 600, 900, 1200, 1800, 2700, 3600))
"""The times that are named."""
BEYOND = timedelta.max
"""Stands for whatever is longer than these."""

_CLEARLY = 1.25  # a time must be shorter by this much before less is told than before, or longer to be sorry

_LONGER = {"zh": "很抱歉，等待时间比刚才告知的要长。", "en": "We are sorry, it takes longer than we said."}
_UNKNOWN = {
    ("no_history", "zh"): "近期接通的电话太少，暂时无法估计等待时间。",
    ("no_history", "en"): "We cannot say yet how long it takes: too few calls have been answered lately.",
    ("no_agent_seen", "zh"): "最近几分钟没有坐席接听，暂时无法估计等待时间。",
    ("no_agent_seen", "en"): "We cannot say how long it takes: no agent has answered for some minutes.",
}


@dataclass(frozen=True, slots=True)
class Told:
    """What was said: the text, the caller's place (1 is next), both times (None: unknown, or BEYOND)."""

    text: str
    position: int
    about: timedelta | None
    at_most: timedelta | None

    @property
    def at_most_ms(self) -> int | None:
        """The bound that was named, in milliseconds; None if none was."""
        if self.at_most is None or self.at_most == BEYOND:
            return None
        return self.at_most // timedelta(milliseconds=1)


def tell(
    estimate: Estimate,
    ahead: int,
    language: Language,
    before: Told | None = None,
    since: timedelta = timedelta(0),
) -> Told:
    """Word an estimate; `before` is what the same caller was told last, `since` how long ago."""
    about = _named(estimate.expected, before.about if before else None)
    at_most = _named(estimate.at_most, before.at_most if before else None)
    said = [_place(ahead, language)]
    if _broken(estimate, before, since):
        said.append(_LONGER[language])
    said.append(_time(estimate, about, at_most, language))
    return Told(("" if language == "zh" else " ").join(said), ahead + 1, about, at_most)


def _named(wait: timedelta | None, before: timedelta | None) -> timedelta | None:
    """Round up to a step; less than before is named only if it is clearly less, lest it wavers."""
    if wait is None:
        return None
    step = _step(wait)
    if before is not None and step < before:
        return min(before, _step(wait * _CLEARLY))
    return step


def _step(wait: timedelta) -> timedelta:
    place = bisect_left(STEPS, wait)
    return STEPS[place] if place < len(STEPS) else BEYOND


def _broken(estimate: Estimate, before: Told | None, since: timedelta) -> bool:
    if before is None or before.at_most is None or before.at_most == BEYOND:
        return False
    in_all = since + (estimate.expected or timedelta(0))
    return since > before.at_most or in_all > before.at_most * _CLEARLY


def _place(ahead: int, language: Language) -> str:
    if language == "zh":
        return f"您前面还有{ahead}位。" if ahead else "下一位就是您。"
    return f"You are number {ahead + 1} in the queue." if ahead else "You are next."


def _time(estimate: Estimate, about: timedelta | None, at_most: timedelta | None, language: Language) -> str:
    zh = language == "zh"
    if about is None or at_most is None:
        return _UNKNOWN[estimate.reason or "no_history", language]
    if about == BEYOND:
        return "预计还要等待1小时以上。" if zh else "The wait is likely more than an hour."
    if at_most == BEYOND:
        likely = _spoken(about, language)
        return f"预计等待约{likely}，也可能更久。" if zh else f"The wait is about {likely}, perhaps more."
    bound = _spoken(at_most, language)
    if about == at_most:
        return f"预计等待不超过{bound}。" if zh else f"The wait is most likely less than {bound}."
    likely = _spoken(about, language)
    if zh:
        return f"预计等待约{likely}，一般不超过{bound}。"
    return f"The wait is about {likely}, most likely less than {bound}."


def _spoken(wait: timedelta, language: Language) -> str:
    minutes = wait // timedelta(minutes=1)
    if language == "zh":
        return f"{minutes}分钟" if minutes else f"{wait.seconds}秒"
    if not minutes:
        return f"{wait.seconds} seconds"
    return "1 minute" if minutes == 1 else f"{minutes} minutes"
