"""What a process tells about itself, and to whom: everything on its own machine, elsewhere by token."""

import httpx
import pytest
from prometheus_client import CollectorRegistry, Gauge

from chassis.faults import Misconfigured
from chassis.health import Health, Server, application
from chassis.settings import Settings, load_settings

TOKEN = "b2d1f0c4a99e4f5c"
GIVEN = {"KAFKA_BOOTSTRAP": "-", "DATABASE_URL": "-", "MASTER_KEY_FILE": "/dev/null"}


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    return path


async def asks(path, *, client, token_file=None, **headers):
    registry = CollectorRegistry()
    Gauge("queue_depth", "how many wait", registry=registry).set(7)
    app = application(Health(facts=lambda: {"pid": 42}), registry, token_file)
    transport = httpx.ASGITransport(app, client=(client, 1234))
    async with httpx.AsyncClient(transport=transport, base_url="http://process") as asking:
        return await asking.get(path, headers=headers)


@pytest.mark.parametrize("client", ["127.0.0.1", "127.8.0.1", "::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize("known", [True, False])
async def test_on_its_own_machine_everybody_is_told(client, known, token_file):
    given = token_file if known else None
    assert "queue_depth 7" in (await asks("/metrics", client=client, token_file=given)).text
    assert (await asks("/readyz", client=client, token_file=given)).json()["waiting_for"]
    assert (await asks("/healthz", client=client, token_file=given)).json() == {"alive": True, "pid": 42}


@pytest.mark.parametrize("client", ["10.0.0.9", "::ffff:10.0.0.9", "fe80::1%eth0", "", "localhost.evil"])
@pytest.mark.parametrize("path", ["/metrics", "/readyz"])
async def test_elsewhere_nothing_is_told_without_the_token(client, path, token_file):
    closed = await asks(path, client=client, authorization=f"Bearer {TOKEN}")
    assert (closed.status_code, closed.json()["error"]) == (403, "not_allowed")
    for said in ("", "Bearer", "Bearer wrong", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x", "Bearer \xe9"):
        answer = await asks(path, client=client, token_file=token_file, authorization=said.encode("latin-1"))
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), said
        assert "queue_depth" not in answer.text
        assert "42" not in answer.text
    answer = await asks(path, client=client, token_file=token_file, authorization=f"bearer {TOKEN}")
    assert answer.status_code == (200 if path == "/metrics" else 503)


async def test_that_it_is_alive_is_no_secret_and_what_else_it_says_is(token_file):
    answer = await asks("/healthz", client="10.0.0.9", token_file=token_file)
    assert (answer.status_code, answer.json()) == (200, {"alive": True})


async def test_a_new_token_counts_at_once_and_a_lost_file_lets_nobody_in(token_file):
    token_file.write_text("another-token-of-length")
    old = await asks("/metrics", client="10.0.0.9", token_file=token_file, authorization=f"Bearer {TOKEN}")
    new = {"authorization": "Bearer another-token-of-length"}
    assert old.status_code == 401
    assert (await asks("/metrics", client="10.0.0.9", token_file=token_file, **new)).status_code == 200
    for emptied in (lambda: token_file.write_text(""), token_file.unlink):
        emptied()
        for said in ("Bearer ", "Bearer another-token-of-length"):
            answer = await asks("/metrics", client="10.0.0.9", token_file=token_file, authorization=said)
            assert answer.status_code == 401


def test_a_process_that_listens_to_the_world_needs_a_token_that_can_be_read(monkeypatch, token_file):
    for name, value in {**GIVEN, "HTTP_HOST": "0.0.0.0"}.items():
        monkeypatch.setenv(f"HOTLINE_{name}", value)
    with pytest.raises(Misconfigured, match="set HOTLINE_HTTP_TOKEN_FILE"):
        load_settings(Settings)
    monkeypatch.setenv("HOTLINE_HTTP_TOKEN_FILE", str(token_file))
    assert load_settings(Settings).http_token_file == token_file
    for spoil in (
        lambda: token_file.write_text("short"),
        lambda: token_file.write_text("\n"),
        token_file.unlink,
    ):
        spoil()
        with pytest.raises(Misconfigured, match=r"HOTLINE_HTTP_TOKEN_FILE: .*token") as refusal:
            load_settings(Settings)
        assert "short" not in str(refusal.value)


async def test_nobody_elsewhere_may_claim_to_be_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    said = {}

    async def app(scope, receive, send):
        said.update(scope)

    config = Server(app, "127.0.0.1", 0, None)._server.config
    config.load()
    scope = {"type": "http", "client": ("10.0.0.9", 1), "headers": [(b"x-forwarded-for", b"127.0.0.1")]}
    await config.loaded_app(scope, None, None)
    assert said["client"] == ("10.0.0.9", 1)
