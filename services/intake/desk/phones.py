"""One spelling for a telephone number, however a switch or a person wrote it; pure."""

import re
from dataclasses import dataclass
from typing import Literal

import phonenumbers
from phonenumbers import PhoneNumberType

Line = Literal["mobile", "landline", "other", "service", "short"]

_LINES: dict[int, Line] = {
    PhoneNumberType.MOBILE: "mobile",
    PhoneNumberType.FIXED_LINE: "landline",
    PhoneNumberType.TOLL_FREE: "service",
    PhoneNumberType.SHARED_COST: "service",
    PhoneNumberType.PREMIUM_RATE: "service",
    PhoneNumberType.UAN: "service",
}
_URI = re.compile(r"sips?:([^@;>]*)", re.IGNORECASE)
_EXTENSION = re.compile(r"转|分机|轉")


@dataclass(frozen=True, slots=True)
class Phone:
    """One line: `number` is E.164 or a short code, `masked` is how a screen may show it.

    `kind` is mobile, landline, other (a person's, the plan does not say which), service (400, 800) or
    short (12378); service and short numbers belong to no person and are shown whole.
    """

    number: str
    kind: Line
    masked: str

    @property
    def personal(self) -> bool:
        """Tell whether the line may belong to a person."""
        return self.kind not in {"service", "short"}


def normalise(raw: str, region: str = "CN") -> Phone | None:
    """Read a number as dialled in `region`; None when it is withheld, invalid or more than one.

    `raw` may be E.164, national, with carrier prefixes, an extension (dropped), or a tel: or sip: URI.
    """
    uri = _URI.search(raw)
    spelt = _EXTENSION.sub(" ext ", uri[1] if uri else raw)
    try:
        number = phonenumbers.parse(spelt, region)
    except phonenumbers.NumberParseException:
        return None
    if phonenumbers.is_valid_number(number):
        e164 = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)
        kind = _LINES.get(phonenumbers.number_type(number), "other")
        return Phone(e164, kind, _masked(number, kind, region))
    if phonenumbers.is_valid_short_number_for_region(number, region):
        code = phonenumbers.national_significant_number(number)
        return Phone(code, "short", code)
    return None


def _masked(number: phonenumbers.PhoneNumber, kind: Line, region: str) -> str:
    """Show the prefix and at most four last digits; at least four stay hidden where there are so many."""
    if kind == "service":
        return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.NATIONAL)
    digits = phonenumbers.national_significant_number(number)
    if phonenumbers.region_code_for_number(number) != region:
        head, rest = f"+{number.country_code}", digits
    elif area := phonenumbers.length_of_geographical_area_code(number):
        trunk = phonenumbers.ndd_prefix_for_region(region, True) or ""
        head, rest = trunk + digits[:area], digits[area:]
    else:
        head, rest = digits[:3], digits[3:]
    shown = max(1, min(4, len(rest) - 4))
    return f"{head}****{rest[-shown:]}"
