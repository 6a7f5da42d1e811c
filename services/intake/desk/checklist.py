"""What a case must say before it leaves the desk: checklists as data, and how complete a case is.

Deciding is pure; only `load_checklists` reads a file.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self
from zoneinfo import ZoneInfo

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from chassis.faults import Misconfigured
from schemas.case import Category, Completeness, Language, Personal
from services.intake.desk import masking, phones

CHECKLISTS = Path(__file__).with_name("checklists.yaml")
READ_BACK = "read_back"

AnswerKind = Literal["text", "amount", "date", "choice", "yes_no", "last4", "phone", "reference"]
ItemCode = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
Label = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]
_PERSONAL = frozenset(Personal.model_fields) - {"answers"}


class BadChecklists(Misconfigured):
    """A file of checklists that may not be used; says where and why."""


# ------------------------------------------------------------ the data


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Wording(_Entry):
    """The same in both languages."""

    zh: Label
    en: Label

    def of(self, language: Language) -> str:
        """Choose the language."""
        return self.zh if language == "zh" else self.en


class Choice(Wording):
    """One permitted answer."""

    code: ItemCode


class Condition(_Entry):
    """The answer to another item that makes this one worth asking."""

    code: ItemCode
    equals: str


_YES_NO = (Choice(code="yes", zh="是", en="yes"), Choice(code="no", zh="否", en="no"))


class Item(Wording):
    """One thing to find out; `zh` and `en` are its label, `ask` the question that the agent reads.

    The bank may not ask for what it already holds (CBIRC 2020 No. 3, article 13): an item that is
    `held_by_bank` is never missing once the customer is identified.
    """

    code: ItemCode
    kind: AnswerKind
    weight: int = Field(ge=1, le=10)
    ask: Wording
    why: Label
    choices: tuple[Choice, ...] = ()
    held_by_bank: bool = False
    only_if: Condition | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.code in {READ_BACK, "answers"}:
            raise ValueError(f"the code {self.code!r} has a meaning of its own; choose another")
        if self.code in _PERSONAL and self.kind not in {"text", "phone"}:
            raise ValueError(f"{self.code!r} is a field of the customer; its kind must be text or phone")
        if (self.kind == "choice") != bool(self.choices):
            raise ValueError(f"{self.code!r}: the kind choice needs choices, other kinds have none")
        _refuse_twice(f"choice of {self.code!r}", (choice.code for choice in self.choices))
        return self

    @property
    def permitted(self) -> tuple[Choice, ...]:
        """Every possible answer, where they can be listed."""
        return _YES_NO if self.kind == "yes_no" else self.choices


class Listing(Wording):
    """The checklist of a category; or, with `products`, what they change in it."""

    category: str
    name: ItemCode | None = None
    products: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    without: tuple[str, ...] = ()

    @field_validator("category")
    @classmethod
    def _known(cls, category: str) -> str:
        # Category itself reads any unknown word as "other": a misspelt one would pass unseen.
        if category not in set(Category):
            raise ValueError(f"unknown category {category!r}; known are {', '.join(Category)}")
        return category

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if bool(self.name) != bool(self.products):
            raise ValueError(
                "name and products go together: give both to change a category's list, or neither"
            )
        if self.without and not self.products:
            raise ValueError("without drops items of the category's list, which needs products")
        _refuse_twice("item", (*self.required, *self.optional, *self.without))
        return self


def _refuse_twice(what: str, names: Iterable[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"{what} {twice[0]!r} appears twice; it must be unique")


@dataclass(frozen=True, slots=True)
class Checklist:
    """What one case needs: its `items`, and the codes of those `required`, both in the order of asking."""

    name: str
    version: int
    title: Wording
    items: tuple[Item, ...]
    required: tuple[str, ...]
    read_back_weight: int
    zone: ZoneInfo

    @property
    def label(self) -> str:
        """Name and version as a case keeps them, for example `fraud-cards@3`."""
        return f"{self.name}@{self.version}"


class Checklists(_Entry):
    """One version of all checklists."""

    version: int = Field(ge=1)
    zone: ZoneInfo
    read_back_weight: int = Field(ge=1, le=10)
    items: tuple[Item, ...]
    checklists: tuple[Listing, ...]

    @model_validator(mode="after")
    def _whole(self) -> Self:
        _refuse_twice("item", (item.code for item in self.items))
        plain = [listing.category for listing in self.checklists if not listing.products]
        _refuse_twice("checklist of category", plain)
        if missing := [category for category in Category if category not in plain]:
            raise ValueError(f"category {missing[0].value!r} has no checklist")
        over = [(listing.category, product) for listing in self.checklists for product in listing.products]
        _refuse_twice("checklist of category and product", map("/".join, over))
        _refuse_twice("checklist", (self._name(listing) for listing in self.checklists))
        for listing in self.checklists:
            self._check_codes(listing)
            _check_composed(self._composed(listing))
        return self

    def _check_codes(self, listing: Listing) -> None:
        known = {item.code for item in self.items}
        for code in (*listing.required, *listing.optional):
            if code not in known:
                raise ValueError(f"{self._name(listing)}: item {code!r} is not defined")
        plain = self._plain(listing.category)
        for code in listing.without:
            if code not in {*plain.required, *plain.optional}:
                raise ValueError(f"{self._name(listing)}: {code!r} is not in the category's list to drop")

    def _name(self, listing: Listing) -> str:
        return f"{listing.category}-{listing.name}" if listing.name else listing.category

    def _plain(self, category: str) -> Listing:
        return next(it for it in self.checklists if it.category == category and not it.products)

    def _composed(self, listing: Listing) -> Checklist:
        required: dict[str, bool] = {}
        for layer in (self._plain(listing.category), listing):
            required |= dict.fromkeys(layer.required, True) | dict.fromkeys(layer.optional, False)
        items = [it for it in self.items if it.code in required and it.code not in listing.without]
        return Checklist(
            name=self._name(listing),
            version=self.version,
            title=Wording(zh=listing.zh, en=listing.en),
            items=tuple(items),
            required=tuple(item.code for item in items if required[item.code]),
            read_back_weight=self.read_back_weight,
            zone=self.zone,
        )

    def checklist_for(self, category: Category, product: str) -> Checklist:
        """Choose what a case needs: its category's list, with what its product changes in it."""
        over = [it for it in self.checklists if it.category == category and product in it.products]
        return self._composed(over[0] if over else self._plain(category))


def _check_composed(checklist: Checklist) -> None:
    if "summary" not in checklist.required or not {"demand", "suggestion"} & {*checklist.required}:
        raise ValueError(f"{checklist.name}: summary, and demand or suggestion, must be required")
    earlier: dict[str, Item] = {}
    for item in checklist.items:
        if (condition := item.only_if) is not None:
            asked = earlier.get(condition.code)
            answers = {choice.code for choice in asked.permitted} if asked and not asked.only_if else set()
            if condition.equals not in answers:
                raise ValueError(
                    f"{checklist.name}: {item.code!r} waits for {condition.code} = {condition.equals!r},"
                    " which no earlier unconditional item of the list can answer"
                )
        earlier[item.code] = item


def load_checklists(path: Path | None = None) -> Checklists:
    """Read a file of checklists, ours without one; raises BadChecklists: the file, the entry, the reason."""
    path = path or CHECKLISTS
    try:
        return Checklists.model_validate(yaml.safe_load(path.read_text("utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadChecklists(f"{path}: {error}") from None
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(str(part) for part in fault['loc']) or 'file'}: {fault['msg']}"
            for fault in error.errors(include_url=False)
        )
        raise BadChecklists(f"{path}: {faults}") from None


# ------------------------------------------------------------ how complete a case is


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that the agent still has to ask or correct; never repeats what was answered."""

    code: str
    zh: str
    en: str


def problems(
    checklist: Checklist, personal: Personal, *, read_back: bool, identified: bool, now: datetime
) -> list[Problem]:
    """List what is missing or unusable, in the order of asking; `now` is the time of the call."""
    today = now.astimezone(checklist.zone).date()
    found = [
        problem
        for item in _due(checklist, personal, identified=identified)
        if (problem := _problem(item, _said(item.code, personal), today))
    ]
    if not read_back:
        found.append(Problem(READ_BACK, "尚未向客户复述并确认", "Not yet read back to the customer"))
    return found


def assess(
    checklist: Checklist, personal: Personal, *, read_back: bool, identified: bool, now: datetime
) -> Completeness:
    """Score a case: 100 × weight of what is usable ÷ weight of what is due, rounded down.

    Due are the required items that apply, whatever else was answered, and reading the case back.
    The score is 100 exactly when nothing is missing or unusable.
    """
    found = problems(checklist, personal, read_back=read_back, identified=identified, now=now)
    missing = tuple(problem.code for problem in found)
    weights = {item.code: item.weight for item in _due(checklist, personal, identified=identified)}
    weights[READ_BACK] = checklist.read_back_weight
    lost = sum(weights[code] for code in missing)
    total = sum(weights.values())
    return Completeness(
        score=100 * (total - lost) // total, missing=missing, checklist=checklist.label, read_back=read_back
    )


def _said(code: str, personal: Personal) -> str:
    said = getattr(personal, code) if code in _PERSONAL else personal.answers.get(code, "")
    return str(said).strip()


def _applies(item: Item, personal: Personal) -> bool:
    return item.only_if is None or _said(item.only_if.code, personal) == item.only_if.equals


def _due(checklist: Checklist, personal: Personal, *, identified: bool) -> list[Item]:
    def asked(item: Item) -> bool:
        return item.code in checklist.required and not (item.held_by_bank and identified)

    return [
        item
        for item in checklist.items
        if _applies(item, personal) and (_said(item.code, personal) or asked(item))
    ]


def _problem(item: Item, said: str, today: date) -> Problem | None:
    fault = _fault(item, said, today)
    return Problem(item.code, f"{item.zh}：{fault.zh}", f"{item.en}: {fault.en}") if fault else None


# ------------------------------------------------------------ what each kind of answer must be


class Amount(NamedTuple):
    """A sum of money; `currency` is ISO 4217."""

    value: Decimal
    currency: str


_AMOUNT = re.compile(
    r"(?P<before>[^0-9.,+-]*?) ?(?P<whole>[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,15})(?P<part>\.[0-9]{1,6})?"
    r" ?(?P<times>[千万亿]?) ?(?P<after>[^0-9.,+-]*)"
)
_TIMES = {"": 1, "千": 1_000, "万": 10_000, "亿": 100_000_000}
_CURRENCIES = {
    "CNY": "CNY RMB CN¥ ¥ 人民币 元 块 块钱 元整 元人民币 YUAN",
    "HKD": "HKD HK$ 港币 港元",
    "MOP": "MOP MOP$ 澳门元 澳门币",
    "TWD": "TWD NT$ 新台币 台币",
    "USD": "USD US$ $ 美元 美金",
    "EUR": "EUR € 欧元",
    "GBP": "GBP £ 英镑",
    "JPY": "JPY JP¥ 日元 日币",
    "KRW": "KRW ₩ 韩元 韩币",
    "AUD": "AUD A$ AU$ 澳元 澳币",
    "CAD": "CAD C$ CA$ 加元 加币",
    "SGD": "SGD S$ 新加坡元 新币",
    "CHF": "CHF 瑞士法郎",
    "THB": "THB ฿ 泰铢",
}
"""How people here write a currency, by ISO 4217; a bare ¥ or 元 is China's, a bare $ America's."""
_CURRENCY_OF = {spelt: code for code, every in _CURRENCIES.items() for spelt in every.split()}


def read_amount(said: str) -> Amount | None:
    """Read a sum of money, for example `¥1,280.50` or `1.2万元`; None without one known currency."""
    match = _AMOUNT.fullmatch(unicodedata.normalize("NFKC", said).strip().upper())
    if match is None:
        return None
    currencies = {_CURRENCY_OF.get(word) for side in ("before", "after") if (word := match[side].strip())}
    value = Decimal(match["whole"].replace(",", "") + (match["part"] or "")) * _TIMES[match["times"]]
    if len(currencies) != 1 or value != round(value, 2):
        return None
    currency = currencies.pop()
    return Amount(value, currency) if currency else None


_DATE = re.compile(r"([0-9]{4})([-/.年])([0-9]{1,2})[-/.月]([0-9]{1,2})日?")


def read_date(said: str) -> date | None:
    """Read a date with its year, as `2026-11-24` or `2026年11月24日`; None when there is no such day."""
    match = _DATE.fullmatch(unicodedata.normalize("NFKC", said).replace(" ", ""))
    try:
        return date(int(match[1]), int(match[3]), int(match[4])) if match else None
    except ValueError:
        return None


_LAST4 = re.compile(r"[0-9]{4}")
_REFERENCE = re.compile(r"[\w./#-]{3,64}")


def _matching(pattern: re.Pattern[str]) -> Callable[[str], str | None]:
    def read(said: str) -> str | None:
        plain = unicodedata.normalize("NFKC", said)
        return plain if pattern.fullmatch(plain) else None

    return read


_READERS: dict[AnswerKind, Callable[[str], object | None]] = {
    "text": lambda said: said if any(char.isalnum() for char in said) else None,
    "amount": read_amount,
    "date": read_date,
    "last4": _matching(_LAST4),
    "phone": phones.normalise,
    "reference": _matching(_REFERENCE),
}


def _meaning(item: Item, said: str) -> object | None:
    """What an answer means: a Choice, Amount, date, Phone or the words; None when it is not of its kind."""
    if item.permitted:
        return next((choice for choice in item.permitted if choice.code == said), None)
    return _READERS[item.kind](said)


_CHOOSE = Wording(zh="请从选项中选择", en="choose one of the answers offered")
_UNREADABLE: dict[AnswerKind, Wording] = {
    "choice": _CHOOSE,
    "yes_no": _CHOOSE,
    "amount": Wording(
        zh="请写数字和币种，例如 1280.50 元", en="write number and currency, for example 1280.50 CNY"
    ),
    "date": Wording(zh="请写年月日，例如 2026-11-24", en="write year, month and day, for example 2026-11-24"),
    "text": Wording(zh="请用文字说明", en="write it in words"),
    "last4": Wording(zh="请只写四位数字", en="write four digits, no more"),
    "phone": Wording(
        zh="不是有效号码，座机请加区号", en="not a valid number; a landline needs its area code"
    ),
    "reference": Wording(
        zh="请写 3 至 64 位字母或数字，不含空格", en="write 3 to 64 letters or digits without spaces"
    ),
}
_FUTURE = Wording(zh="日期不能晚于今天", en="the date lies in the future")
_CARD_NUMBER = Wording(
    zh="不得记录完整卡号，请只留末四位", en="a full card number may not be kept; leave its last four digits"
)


def _fault(item: Item, said: str, today: date) -> Wording | None:
    if not said:
        return Wording(zh=f"尚未登记。{item.ask.zh}", en=f"not recorded yet. {item.ask.en}")
    # The customer's own words stay as they are; all other text is the agent's to shorten.
    if item.code not in _PERSONAL and _tells_card_number(said):
        return _CARD_NUMBER
    meaning = _meaning(item, said)
    if meaning is None:
        return _UNREADABLE[item.kind]
    return _FUTURE if isinstance(meaning, date) and meaning > today else None


def _tells_card_number(said: str) -> bool:
    return any(found.kind is masking.Kind.CARD for found in masking.mask(said).found)


# ------------------------------------------------------------ reading it back

_OPENING = Wording(zh="我把您反映的情况复述一遍，请您确认。", en="Let me read back what I have written down.")
_RECORDED_AS = Wording(zh="登记类型", en="Recorded as")
_CLOSING = Wording(zh="以上内容对吗？还有要补充的吗？", en="Is that right? Would you like to add anything?")


def read_back_text(checklist: Checklist, personal: Personal, *, language: Language, now: datetime) -> str:
    """Write what the agent reads to the customer, a line for each usable answer; long numbers are masked."""
    colon = "：" if language == "zh" else ": "
    today = now.astimezone(checklist.zone).date()
    lines = [_OPENING.of(language), f"{_RECORDED_AS.of(language)}{colon}{checklist.title.of(language)}"]
    for item in _due(checklist, personal, identified=True):
        said = _said(item.code, personal)
        if _fault(item, said, today) is None:
            lines.append(f"{item.of(language)}{colon}{_aloud(item, said, language)}")
    return "\n".join([*lines, _CLOSING.of(language)])


def _aloud(item: Item, said: str, language: Language) -> str:
    match _meaning(item, said):
        case Choice() as choice:
            return choice.of(language)
        case Amount(value, currency):
            return f"{value:,.2f} {currency}"
        case date() as day:
            return f"{day.year}年{day.month}月{day.day}日" if language == "zh" else day.isoformat()
        case phones.Phone() as phone:
            return phone.masked
    return masking.mask(said).text
