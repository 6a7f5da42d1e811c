"""What a case must say: lists that load or say why not, scores that add up, problems that repeat no secret."""

import copy
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cli.texts import scripts
from schemas.case import Category, Personal
from services.intake.desk.checklist import (
    CHECKLISTS,
    BadChecklists,
    assess,
    load_checklists,
    problems,
    read_amount,
    read_back_text,
    read_date,
)

NOW = datetime(2026, 11, 24, 2, 0, tzinfo=UTC)
BOOK = load_checklists()
FRAUD = BOOK.checklist_for(Category.FRAUD, "credit_card")
CARD = "6222021234567890128"
FILLED = Personal(
    name="林素云",
    phone="13910005000",
    summary="凌晨收到三条境外消费短信。",
    demand="马上止付并把钱退回来！",
    answers={
        "still_going": "yes",
        "blocked": "no",
        "fraud_kind": "unauthorised",
        "occurred_on": "2026年11月23日",
        "amount": "¥1,280.50",
        "card_last4": "0128",
        "card_in_hand": "yes",
        "payment_place": "abroad",
        "secret_shared": "no",
        "contacted_by": "none",
        "police_told": "no",
    },
)


def judged(personal, checklist=FRAUD, *, read_back=True, identified=False, now=NOW):
    return assess(checklist, personal, read_back=read_back, identified=identified, now=now)


def told(personal, checklist=FRAUD):
    found = problems(checklist, personal, read_back=True, identified=False, now=NOW)
    return {problem.code: (problem.zh, problem.en) for problem in found}


def answering(**answers):
    return FILLED.model_copy(update={"answers": {**FILLED.answers, **answers}})


def without(*codes):
    left = {code: said for code, said in FILLED.answers.items() if code not in codes}
    return FILLED.model_copy(update={"answers": left} | {code: "" for code in codes if hasattr(FILLED, code)})


# ------------------------------------------------------------ the lists


def test_every_category_has_a_list_and_products_change_it():
    names = {category: BOOK.checklist_for(category, "safe_deposit_box").name for category in Category}
    assert names == {category: category.value for category in Category}
    assert FRAUD.label == f"fraud-cards@{BOOK.version}"
    plain = {item.code for item in BOOK.checklist_for(Category.FRAUD, "loan").items}
    added = {item.code: item.code in FRAUD.required for item in FRAUD.items if item.code not in plain}
    assert added == {"card_last4": True, "card_in_hand": True, "payment_place": True, "merchant": False}
    fees = {item.code for item in BOOK.checklist_for(Category.DISPUTE, "fee").items}
    assert "dispute_reason" not in fees
    assert "fee_name" in fees
    branches, lending = (BOOK.checklist_for(Category.COMPLAINT, product) for product in ("branch", "loan"))
    assert "unit" in {item.code for item in lending.items}
    assert ("unit" in branches.required, "unit" in lending.required) == (True, False)


def test_no_item_is_defined_in_vain():
    listed = {code for listing in BOOK.checklists for code in (*listing.required, *listing.optional)}
    assert listed == {item.code for item in BOOK.items}


def test_items_come_in_the_order_of_the_file():
    order = [item.code for item in BOOK.items]
    for category in Category:
        for product in ("credit_card", "atm", "transfer", "fee", "loan", "wealth", "mobile_banking", "other"):
            codes = [item.code for item in BOOK.checklist_for(category, product).items]
            assert codes == [code for code in order if code in codes]


def test_every_invented_case_of_the_demo_can_be_assessed():
    cases = [(Category(script.category), script) for script in scripts()]
    assert len(cases) > 60
    for category, script in cases:
        personal = Personal(
            name=script.name, phone=script.phone, summary=script.summary, demand=script.demand
        )
        missing = judged(personal, BOOK.checklist_for(category, script.product)).missing
        assert not {"name", "phone", "summary", "demand"} & set(missing)


RAW = yaml.safe_load(CHECKLISTS.read_text("utf-8"))


def saved(tmp_path, change):
    raw = copy.deepcopy(RAW)
    change(raw)
    path = tmp_path / "lists.yaml"
    path.write_text(yaml.safe_dump(raw, allow_unicode=True), "utf-8")
    return path


def item_of(raw, code):
    return next(item for item in raw["items"] if item["code"] == code)


def listing_of(raw, category, name=None):
    return next(it for it in raw["checklists"] if (it["category"], it.get("name")) == (category, name))


FAULTS = {
    "checklists.4.category: * unknown category 'frued'": lambda raw: listing_of(raw, "fraud").update(
        category="frued"
    ),
    "category 'other' has no checklist": lambda raw: raw["checklists"].remove(listing_of(raw, "other")),
    "checklist of category 'help' appears twice": lambda raw: raw["checklists"].append(
        listing_of(raw, "help")
    ),
    "checklist of category and product 'help/atm' appears twice": lambda raw: listing_of(
        raw, "help", "digital"
    )["products"].append("atm"),
    "checklist 'help-cards' appears twice": lambda raw: listing_of(raw, "help", "digital").update(
        name="cards"
    ),
    "item 'amount' appears twice": lambda raw: raw["items"].append(item_of(raw, "amount")),
    "checklists.3: * item 'basis' appears twice": lambda raw: listing_of(raw, "dispute")["required"].append(
        "basis"
    ),
    "fraud-cards: item 'pin' is not defined": lambda raw: listing_of(raw, "fraud", "cards")[
        "required"
    ].append("pin"),
    "dispute-fees: 'staff' is not in the category's list": lambda raw: listing_of(raw, "dispute", "fees")[
        "without"
    ].append("staff"),
    "checklists.0: * without drops items": lambda raw: listing_of(raw, "enquiry").update(
        without=["reference"]
    ),
    "checklists.0: * name and products go together": lambda raw: listing_of(raw, "enquiry").update(name="x"),
    "enquiry: summary, and demand or suggestion, must be required": lambda raw: listing_of(raw, "enquiry")[
        "required"
    ].remove("demand"),
    "items.*'fraud_kind': the kind choice needs choices": lambda raw: item_of(raw, "fraud_kind").pop(
        "choices"
    ),
    "choice of 'fraud_kind' 'identity' appears twice": lambda raw: item_of(raw, "fraud_kind")[
        "choices"
    ].append(item_of(raw, "fraud_kind")["choices"][2]),
    "fraud: 'suspect_phone' waits for contacted_by = 'pigeon'": lambda raw: item_of(raw, "suspect_phone")[
        "only_if"
    ].update(equals="pigeon"),
    "fraud: 'contacted_by' waits for suspect_phone = 'x'": lambda raw: item_of(raw, "contacted_by").update(
        only_if={"code": "suspect_phone", "equals": "x"}
    ),
    "'police_reference' waits for police_told = 'yes'": lambda raw: item_of(raw, "police_told").update(
        only_if={"code": "still_going", "equals": "yes"}
    ),
    "the code 'read_back' has a meaning of its own": lambda raw: item_of(raw, "device").update(
        code="read_back"
    ),
    "'summary' is a field of the customer": lambda raw: item_of(raw, "summary").update(kind="date"),
    "items.0.wieght: Extra inputs": lambda raw: raw["items"][0].update(wieght=3),
    "items.0.weight: * greater than or equal to 1": lambda raw: raw["items"][0].update(weight=0),
    "items.0.kind: * 'text', 'amount'": lambda raw: raw["items"][0].update(kind="number"),
    "items.0.required: Extra inputs": lambda raw: raw["items"][0].update(required=True),
    "items.0.ask.en: Field required": lambda raw: raw["items"][0]["ask"].pop("en"),
    "zone: ": lambda raw: raw.update(zone="Asia/Peking"),
}


@pytest.mark.parametrize("said", FAULTS)
def test_a_bad_file_says_where_and_why(tmp_path, said):
    path = saved(tmp_path, FAULTS[said])
    with pytest.raises(BadChecklists) as refused:
        load_checklists(path)
    message = str(refused.value)
    assert message.startswith(f"{path}: ")
    at = 0
    for part in said.split("*"):
        at = message.index(part.strip(), at)


def test_a_file_that_is_absent_or_no_yaml_is_refused(tmp_path):
    absent, broken = tmp_path / "absent.yaml", tmp_path / "broken.yaml"
    broken.write_text("items: {", "utf-8")
    for path in (absent, broken):
        with pytest.raises(BadChecklists, match=path.name):
            load_checklists(path)


# ------------------------------------------------------------ how complete


def test_a_full_case_scores_a_hundred():
    done = judged(FILLED)
    assert (done.score, done.missing, done.checklist, done.read_back) == (100, (), FRAUD.label, True)


def test_an_empty_case_lacks_everything_that_is_required():
    empty = judged(Personal(), read_back=False)
    waiting = {"police_reference"}
    assert empty.score == 0
    assert empty.missing == (*(code for code in FRAUD.required if code not in waiting), "read_back")


def test_the_score_is_the_share_of_weights():
    weights = {item.code: item.weight for item in FRAUD.items}
    due = sum(weights[code] for code in (*FILLED.answers, "name", "phone", "summary", "demand"))
    due += BOOK.read_back_weight
    assert (weights["amount"], weights["demand"], BOOK.read_back_weight, due) == (4, 4, 2, 46)
    assert judged(without("amount")).score == 100 * 42 // 46 == 91
    assert judged(without("amount", "demand")).score == 100 * 38 // 46 == 82
    assert judged(FILLED, read_back=False).score == 100 * 44 // 46 == 95
    assert judged(without("amount", "demand"), read_back=False).missing == ("amount", "demand", "read_back")


def test_the_bank_does_not_ask_for_what_it_holds():
    bare = without("name", "phone")
    assert judged(bare, identified=False).missing == ("name", "phone")
    assert judged(bare, identified=True).missing == ()
    assert judged(bare, identified=True).score == 100
    wrong = bare.model_copy(update={"phone": "1234567"})
    assert judged(wrong, identified=True).missing == ("phone",)


def test_a_question_that_depends_on_another_waits_for_it():
    assert judged(answering(police_told="yes")).missing == ("police_reference",)
    assert judged(answering(police_told="yes", police_reference="A-2026/117")).missing == ()
    assert judged(answering(police_told="no", police_reference="?")).missing == ()


def test_an_optional_answer_must_be_usable_too():
    assert judged(answering(suspect_phone="123456", contacted_by="call")).missing == ("suspect_phone",)
    assert judged(answering(reference="no idea")).missing == ("reference",)
    assert judged(answering(nobody_asks_this="?")).missing == ()


@pytest.mark.parametrize("blank", ["", "  ", "　", "\n"])
def test_blanks_are_missing_and_signs_are_no_words(blank):
    assert told(FILLED.model_copy(update={"summary": blank})) == {
        "summary": (
            "事情经过：尚未登记。请您说一下事情的经过。",
            "What happened: not recorded yet. Please tell me what happened.",
        )
    }
    assert told(FILLED.model_copy(update={"summary": f"{blank}……"}))["summary"] == (
        "事情经过：请用文字说明",
        "What happened: write it in words",
    )


def test_a_suggestion_is_asked_for_and_a_demand_is_not():
    checklist = BOOK.checklist_for(Category.SUGGESTION, "branch")
    personal = Personal(summary="排队太久。", name="李", phone="13910005000")
    assert judged(personal, checklist).missing == ("suggestion",)
    assert judged(personal.model_copy(update={"suggestion": "多开一个窗口。"}), checklist).missing == ()


# ------------------------------------------------------------ what is usable


@pytest.mark.parametrize(
    ("said", "amount"),
    [
        ("¥1,234.50", ("1234.50", "CNY")),
        ("￥１２００", ("1200", "CNY")),
        ("1234.5元", ("1234.5", "CNY")),
        ("人民币100元", ("100", "CNY")),
        ("1.2万元", ("12000", "CNY")),
        ("0元", ("0", "CNY")),
        ("20 usd", ("20", "USD")),
        ("US$ 1,000,000", ("1000000", "USD")),
        ("20美元", ("20", "USD")),
        ("HK$88", ("88", "HKD")),
        ("€5", ("5", "EUR")),
        *((said, None) for said in ("", "1234", "元", "1,23元", "12,34.5元", "-5元", "$100元", "5 XYZ")),
        *(
            (said, None)
            for said in ("100.123元", "1万2千元", "1e5元", "约100元", "三千元", "NaN元", "1..2元")
        ),
    ],
)
def test_amounts(said, amount):
    assert read_amount(said) == (amount and (Decimal(amount[0]), amount[1]))


@pytest.mark.parametrize(
    ("said", "day"),
    [
        *((said, date(2026, 11, 4)) for said in ("2026-11-04", "2026/11/4", "2026.11.4", "2026年11月4日")),
        ("２０２６ 年 11 月 04 日", date(2026, 11, 4)),
        *(
            (said, None)
            for said in ("", "2026-02-30", "11-04", "4/11/2026", "昨天", "20261104", "2026-11-04T1")
        ),
    ],
)
def test_dates(said, day):
    assert read_date(said) == day


def test_a_date_in_the_future_is_refused_by_the_calendar_of_the_desk():
    evening = datetime(2026, 11, 24, 16, 30, tzinfo=UTC)  # half past midnight on the 25th in Shanghai
    today, tomorrow = answering(occurred_on="2026-11-25"), answering(occurred_on="2026-11-26")
    assert judged(today, now=evening).missing == ()
    assert judged(today, now=evening - timedelta(hours=1)).missing == ("occurred_on",)
    assert judged(tomorrow, now=evening).missing == ("occurred_on",)
    assert told(tomorrow)["occurred_on"] == (
        "发生日期：日期不能晚于今天",
        "Date it happened: the date lies in the future",
    )


@pytest.mark.parametrize(
    ("code", "usable", "unusable"),
    [
        ("card_last4", ["0128", "０１２８"], ["128", "01280", "012a", "**** 0128"]),
        ("still_going", ["yes", "no"], ["maybe", "YES", "是"]),
        ("payment_place", ["abroad", "online"], ["elsewhere", "商户刷卡"]),
        ("phone", ["13910005000", "010-62345678", "+44 7911 123456"], ["anonymous", "62345678", "0"]),
        ("reference", ["A-2026/117", "20261123000417"], ["no", "a b c", "x" * 65, "？？？"]),
        ("amount", ["5元"], ["5", "five"]),
    ],
)
def test_each_kind_of_answer(code, usable, unusable):
    def with_answer(said):
        return FILLED.model_copy(update={"phone": said}) if code == "phone" else answering(**{code: said})

    assert [judged(with_answer(said)).missing for said in usable] == [()] * len(usable)
    assert [judged(with_answer(said)).missing for said in unusable] == [(code,)] * len(unusable)


@pytest.mark.parametrize("code", ["card_last4", "merchant", "reference", "basis"])
@pytest.mark.parametrize("said", [CARD, "6222 0212 3456 7890 128", f"卡{CARD}"])
def test_a_full_card_number_is_refused_and_not_repeated(code, said):
    zh, en = told(answering(**{code: said}))[code]
    assert zh.endswith("：不得记录完整卡号，请只留末四位")
    assert en.endswith(": a full card number may not be kept; leave its last four digits")
    assert not any(char.isdigit() for char in zh + en)


def test_the_customers_own_words_are_nobodys_to_shorten():
    words = f"把钱退到{CARD}，不然我就投诉！"
    personal = FILLED.model_copy(update={"summary": words, "demand": words})
    before = personal.model_dump()
    assert judged(personal).missing == ()
    assert personal.model_dump() == before


# ------------------------------------------------------------ properties

SAID = st.one_of(
    st.sampled_from(
        ["", " ", "yes", "no", "call", "0128", CARD, "5元", "2026-11-01", "13910005000", "A-117"]
    ),
    st.text(max_size=20),
)
CODES = sorted({item.code for item in BOOK.items} - set(Personal.model_fields))
PERSONS = st.builds(
    Personal,
    **dict.fromkeys(("name", "phone", "summary", "demand", "suggestion"), SAID),
    answers=st.dictionaries(st.sampled_from(CODES), SAID),
)
LISTS = st.builds(
    BOOK.checklist_for,
    st.sampled_from(Category),
    st.sampled_from(["credit_card", "fee", "transfer", "loan", "x"]),
)


@given(LISTS, PERSONS, st.booleans(), st.booleans())
def test_a_hundred_means_nothing_is_left_and_every_gap_is_explained(
    checklist, personal, read_back, identified
):
    facts = {"read_back": read_back, "identified": identified, "now": NOW}
    done = assess(checklist, personal, **facts)
    assert 0 <= done.score <= 100
    assert (done.score == 100) == (done.missing == ())
    assert done.missing == tuple(problem.code for problem in problems(checklist, personal, **facts))
    assert len(set(done.missing)) == len(done.missing)
    assert ("read_back" in done.missing) != read_back


@given(LISTS, PERSONS, st.booleans())
def test_to_identify_the_customer_or_to_read_back_never_costs(checklist, personal, read_back):
    before = judged(personal, checklist, read_back=False)
    assert judged(personal, checklist, read_back=True).score >= before.score
    known = judged(personal, checklist, read_back=read_back, identified=True)
    assert set(known.missing) <= set(judged(personal, checklist, read_back=read_back).missing)


@given(LISTS, PERSONS)
def test_filling_a_gap_with_a_usable_answer_raises_the_score(checklist, personal):
    good = {"text": "说明", "amount": "5元", "date": "2026-11-01", "last4": "0128", "phone": "13910005000"}
    good |= {"yes_no": "no", "reference": "A-117"}
    before = judged(personal, checklist)
    for item in checklist.items:
        if item.code in before.missing:
            said = item.choices[0].code if item.choices else good[item.kind]
            if item.code in Personal.model_fields:
                better = personal.model_copy(update={item.code: said})
            else:
                better = personal.model_copy(update={"answers": {**personal.answers, item.code: said}})
            after = judged(better, checklist)
            assert item.code not in after.missing
            # The answer may open a further question; without one, the score can only rise.
            assert after.score >= before.score or set(after.missing) - set(before.missing)


@given(st.sampled_from(CODES), st.text("0123456789", min_size=5, max_size=19))
def test_no_problem_repeats_what_was_answered(code, said):
    for checklist in (FRAUD, BOOK.checklist_for(Category.DISPUTE, "atm")):
        for zh, en in told(answering(**{code: said}), checklist).values():
            assert said not in zh + en


# ------------------------------------------------------------ reading it back


def test_what_the_agent_reads_in_chinese():
    personal = answering(card_last4="12", reference="A-117").model_copy(
        update={"summary": f"卡{CARD}被盗刷，身份证11010519491231002X。"}
    )
    assert read_back_text(FRAUD, personal, language="zh", now=NOW).splitlines() == [
        "我把您反映的情况复述一遍，请您确认。",
        "登记类型：欺诈（银行卡）",
        "资金是否仍在流出：是",
        "卡或账户是否已挂失止付：否",
        "事情经过：卡**** **** **** 0128被盗刷，身份证110***********002X。",
        "欺诈类型：非本人操作",
        "发生日期：2026年11月23日",
        "涉及金额：1,280.50 CNY",
        "流水号或凭证号：A-117",
        "卡是否在手上：是",
        "交易方式：境外交易",
        "是否泄露过密码或验证码：否",
        "对方联系方式：没有联系",
        "是否已报警：否",
        "您的要求：马上止付并把钱退回来！",
        "姓名：林素云",
        "联系电话：139****5000",
        "以上内容对吗？还有要补充的吗？",
    ]


def test_what_the_agent_reads_in_english():
    checklist = BOOK.checklist_for(Category.SUGGESTION, "branch")
    personal = Personal(summary="Long queues.", suggestion="Open another counter.", phone="+44 7911 123456")
    assert read_back_text(checklist, personal, language="en", now=NOW).splitlines() == [
        "Let me read back what I have written down.",
        "Recorded as: Suggestion",
        "What happened: Long queues.",
        "Your suggestion: Open another counter.",
        "Telephone number: +44****3456",
        "Is that right? Would you like to add anything?",
    ]


@given(LISTS, PERSONS, st.sampled_from(["zh", "en"]))
def test_no_full_number_is_read_aloud(checklist, personal, language):
    text = read_back_text(checklist, personal, language=language, now=NOW)
    assert CARD not in text
    assert "13910005000" not in text
