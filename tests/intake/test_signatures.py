"""Whose delivery it is: published vectors, our own by another library, and every way to forge one."""

import json
from base64 import b64decode, b64encode
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.hmac import HMAC
from hypothesis import given
from hypothesis import strategies as st

from services.intake.sources.signatures import BadSignature, verify_standard, verify_twilio

# The example of the Standard Webhooks specification and of its reference libraries.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
SIGNED = 1614265330
NOW = datetime.fromtimestamp(SIGNED, UTC)
BODY = b'{"test": 2432232314}'
HEADERS = {
    "Webhook-Id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
    "Webhook-Timestamp": str(SIGNED),
    "Webhook-Signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
}


def mac(algorithm, key, text):
    """The same computation by another library than the one under test."""
    signer = HMAC(key, algorithm)
    signer.update(text)
    return b64encode(signer.finalize()).decode()


def standard(body, secret=b"s" * 24, at=SIGNED, name="m-1"):
    signature = mac(hashes.SHA256(), secret, f"{name}.{at}.".encode() + body)
    return {"webhook-id": name, "webhook-timestamp": str(at), "webhook-signature": f"v1,{signature}"}


def refused(verify, *arguments):
    with pytest.raises(BadSignature) as caught:
        verify(*arguments)
    return caught.value.reason


# ---------------------------------------------------------------- Standard Webhooks


def test_the_published_example_verifies():
    verify_standard(HEADERS, BODY, [SECRET], NOW)
    verify_standard(HEADERS, BODY, [SECRET.removeprefix("whsec_")], NOW)
    verify_standard(HEADERS, BODY, [b64decode(SECRET.removeprefix("whsec_"))], NOW)


@given(st.text(), st.binary(min_size=1, max_size=64))
def test_what_another_library_signed_verifies(text, secret):
    verify_standard(standard(text.encode(), secret), text.encode(), [secret], NOW)


def test_any_of_the_secrets_may_have_signed_and_any_of_the_signatures_may_fit():
    old, new = b"o" * 24, b"n" * 24
    verify_standard(standard(BODY, old), BODY, [new, old], NOW)
    verify_standard(standard(BODY, new), BODY, [new, old], NOW)
    both = f"v1a,other {standard(BODY, old)['webhook-signature']} {standard(BODY, new)['webhook-signature']}"
    verify_standard(standard(BODY) | {"webhook-signature": both}, BODY, [new], NOW)
    assert refused(verify_standard, standard(BODY, old), BODY, [new], NOW) == "mismatch"


def test_a_body_written_anew_does_not_fit():
    again = json.dumps(json.loads(BODY), separators=(",", ":")).encode()
    assert json.loads(again) == json.loads(BODY)
    assert refused(verify_standard, HEADERS, again, [SECRET], NOW) == "mismatch"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"Webhook-Id": "msg_other"}, "mismatch"),
        ({"Webhook-Timestamp": str(SIGNED + 1)}, "mismatch"),
        ({"Webhook-Signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OF="}, "mismatch"),
        ({"Webhook-Signature": "v1,"}, "mismatch"),
        ({"Webhook-Signature": "v1,not base64 \ud83d ü"}, "mismatch"),
        ({"Webhook-Signature": "g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="}, "malformed"),
        ({"Webhook-Signature": "v2,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="}, "malformed"),
        ({"Webhook-Timestamp": "1614265330.0"}, "malformed"),
        ({"Webhook-Timestamp": "-1"}, "malformed"),
        ({"Webhook-Timestamp": "٣"}, "malformed"),
        ({"Webhook-Timestamp": "9" * 400}, "malformed"),
        ({"Webhook-Timestamp": "nan"}, "malformed"),
        ({"Webhook-Id": "ü"}, "malformed"),
        ({"Webhook-Id": "\ud83d"}, "malformed"),
        ({"Webhook-Id": ""}, "missing"),
        ({"Webhook-Timestamp": ""}, "missing"),
        ({"Webhook-Signature": ""}, "missing"),
    ],
)
def test_a_changed_header_is_refused_with_the_reason(changes, reason):
    assert refused(verify_standard, HEADERS | changes, BODY, [SECRET], NOW) == reason


def test_an_unsigned_delivery_is_refused():
    assert refused(verify_standard, {}, BODY, [SECRET], NOW) == "missing"


def test_a_body_that_is_no_text_is_refused():
    assert refused(verify_standard, HEADERS, b"\xff", [SECRET], NOW) == "malformed"


@pytest.mark.parametrize(
    ("late", "reason"), [(300, None), (301, "too_old"), (-300, None), (-301, "too_new"), (10**9, "too_old")]
)
def test_five_minutes_either_way_are_allowed(late, reason):
    now = NOW + timedelta(seconds=late)
    if reason is None:
        verify_standard(HEADERS, BODY, [SECRET], now)
    else:
        assert refused(verify_standard, HEADERS, BODY, [SECRET], now) == reason


def test_who_holds_no_secret_learns_nothing_of_the_clock():
    assert refused(verify_standard, HEADERS, b"{}", [SECRET], NOW + timedelta(days=1)) == "mismatch"


@pytest.mark.parametrize("secrets", [[], [""], [b""], ["whsec_"], ["whsec_a"], [SECRET, ""]])
def test_a_secret_that_cannot_be_one_is_the_operators_fault(secrets):
    with pytest.raises(ValueError, match="secret"):
        verify_standard(HEADERS, BODY, secrets, NOW)


def test_an_error_says_what_to_do_and_shows_no_secret():
    with pytest.raises(BadSignature, match="compare the secret") as caught:
        verify_standard(HEADERS, b"{}", [SECRET], NOW)
    assert SECRET[6:] not in str(caught.value)
    with pytest.raises(ValueError, match="no base64") as wrong:
        verify_standard(HEADERS, BODY, ["whsec_abcde"], NOW)
    assert "abcde" not in str(wrong.value)


# ---------------------------------------------------------------- Twilio

URL = "https://mycompany.com/myapp.php?foo=1&bar=2"
# The worked example of Twilio's documentation ("Webhooks security").
DOCUMENTED = {
    "CallSid": "CA1234567890ABCDE",
    "Caller": "+12349013030",
    "Digits": "1234",
    "From": "+12349013030",
    "To": "+18005551212",
}
# The example that the tests of Twilio's own libraries share.
SHARED = DOCUMENTED | {"Caller": "+14158675309", "From": "+14158675309"}
WITH_DIGEST = f"{URL}&bodySHA256=0a1ff7634d9ab3b95db5c9a2dfe9416e41502b283a80c7cf19632632f96e6620"


@pytest.mark.parametrize(
    ("url", "content", "signature"),
    [
        (URL, DOCUMENTED, "0/KCTR6DLpKmkAf8muzZqo1nDgQ="),
        (URL, SHARED, "RSOYDt4T1cUTdK1PDd93/VVr8B8="),
        (URL.replace(".com", ".com:1234"), SHARED, "RSOYDt4T1cUTdK1PDd93/VVr8B8="),
        (URL.replace(".com", ".com:1234").replace("https", "http"), SHARED, "Zmvh+3yNM1Phv2jhDCwEM3q5ebU="),
        (URL, SHARED, "kvajT1Ptam85bY51eRf/AJRuM3w="),
        (URL.replace("https", "http"), SHARED, "0ZXoZLH/DfblKGATFgpif+LLRf4="),
        (
            URL,
            [("Sid", "CA123"), ("SidAccount", "AC123"), ("Digits", "5678"), ("Digits", "1234")],
            "IK+Dwps556ElfBT0I3Rgjkr1wJU=",
        ),
        (WITH_DIGEST, b'{"property": "value", "boolean": true}', "a9nBmqA0ju/hNViExpshrM61xv4="),
    ],
)
def test_published_examples_verify(url, content, signature):
    verify_twilio(url, content, signature, "12345")
    verify_twilio(url, content, signature, ["67890", "12345"])
    assert refused(verify_twilio, url, content, signature, "67890") == "mismatch"


@given(
    st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=5), st.text(min_size=1, max_size=40)
)
def test_what_another_library_computed_verifies(fields, token):
    text = URL + "".join(name + fields[name] for name in sorted(fields))
    signature = mac(hashes.SHA1(), token.encode(), text.encode())
    verify_twilio(URL, fields, signature, token)
    assert refused(verify_twilio, URL, fields | {"Extra": "1"}, signature, token) == "mismatch"
    assert refused(verify_twilio, f"{URL}&x=1", fields, signature, token) == "mismatch"


def test_a_form_as_it_is_parsed_by_the_door_verifies_with_its_empty_fields():
    body = "To=%2B18005551212&CallSid=CA1&ParentCallSid=&From=%2B1234&Digits="
    pairs = parse_qsl(body, keep_blank_values=True)
    signature = mac(
        hashes.SHA1(), b"12345", (URL + "CallSidCA1DigitsFrom+1234ParentCallSidTo+18005551212").encode()
    )
    verify_twilio(URL, pairs, signature, "12345")


def test_an_empty_token_vouches_for_nothing():
    anybodys = mac(hashes.SHA1(), b"", URL.encode())
    for token in ("", [], [""]):
        assert refused(verify_twilio, URL, {}, anybodys, token) == "mismatch"


def test_settings_choose_the_algorithm():
    signature = mac(hashes.SHA256(), b"shared", URL.encode())
    verify_twilio(URL, {}, signature, "shared", "key=webhooks_sharedkey_1, algorithm=HMAC_SHA256")
    assert refused(verify_twilio, URL, {}, signature, "shared") == "mismatch"
    assert refused(verify_twilio, URL, {}, signature, "shared", "key=1") == "mismatch"
    assert refused(verify_twilio, URL, {}, signature, "shared", "key=1,algorithm=MD5") == "malformed"


def test_a_body_written_anew_does_not_fit_its_digest():
    body, signature = b'{"property":"value","boolean":true}', "a9nBmqA0ju/hNViExpshrM61xv4="
    assert refused(verify_twilio, WITH_DIGEST, body, signature, "12345") == "mismatch"


def test_a_body_that_the_address_does_not_vouch_for_is_refused():
    signature = mac(hashes.SHA1(), b"12345", URL.encode())
    verify_twilio(URL, {}, signature, "12345")
    assert refused(verify_twilio, URL, b"{}", signature, "12345") == "missing"
    assert refused(verify_twilio, URL, b"", signature, "12345") == "missing"


@pytest.mark.parametrize(
    ("url", "signature", "reason"),
    [
        (URL, None, "missing"),
        (URL, "", "missing"),
        (URL, "0/KCTR6DLpKmkAf8muzZqo1nDgQ", "mismatch"),
        (URL, "not base64 ü \ud83d", "mismatch"),
        ("https://mycompany.com:port/", "0/KCTR6DLpKmkAf8muzZqo1nDgQ=", "malformed"),
        (URL.replace("https", "http"), "0/KCTR6DLpKmkAf8muzZqo1nDgQ=", "mismatch"),
        (URL.replace("mycompany", "MyCompany"), "0/KCTR6DLpKmkAf8muzZqo1nDgQ=", "mismatch"),
    ],
)
def test_twilios_signature_is_refused_with_the_reason(url, signature, reason):
    assert refused(verify_twilio, url, DOCUMENTED, signature, "12345") == reason


def test_an_address_that_is_none_is_refused_whatever_is_sent():
    for content in ({}, b"{}"):
        for url in ("https://[::1/?bodySHA256=00", "https://h.example:99999/?bodySHA256=00"):
            assert refused(verify_twilio, url, content, "AAAA", "12345") == "malformed"


def test_the_address_is_signed_byte_for_byte():
    for url in (
        "https://h.example/a?",
        "https://h.example/a?b=%2f#",
        "https://[::1]/a",
        "https://u:p@h.example/",
    ):
        verify_twilio(url, {}, mac(hashes.SHA1(), b"12345", url.encode()), "12345")
    with_port = mac(hashes.SHA1(), b"12345", b"https://[::1]:443/a")
    verify_twilio("https://[::1]/a", {}, with_port, "12345")
