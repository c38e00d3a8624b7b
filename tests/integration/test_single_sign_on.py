"""Single sign-on against a provider on loopback that speaks the protocol, with real keys and signatures."""

from __future__ import annotations

import threading
import time
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
import uvicorn
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from fastapi import FastAPI, Request
from joserfc import jwt
from joserfc.jwk import ECKey

from cxr_node.settings import OidcSettings
from cxr_node.web import single_sign_on
from cxr_node.web.single_sign_on import role_of
from tests.orthanc import free_port
from tests.waiting import PATIENCE_S
from tests.web import Site

KEY = ECKey.generate_key("P-256", {"kid": "k", "use": "sig"})
OTHER_KEY = ECKey.generate_key("P-256", {"kid": "k", "use": "sig"})


class Provider:
    """An OpenID provider: every browser that comes is `claims`."""

    def __init__(self):
        self.port = free_port()
        self.issuer = f"http://127.0.0.1:{self.port}"
        self.claims = {"sub": "1", "preferred_username": "dr.ann", "realm_access": {"roles": ["cxr-readers"]}}
        self.key, self.algorithm = KEY, "ES256"
        self.asked: dict[str, str] = {}
        app = FastAPI()

        @app.get("/.well-known/openid-configuration")
        def document():
            return {
                "issuer": self.issuer,
                "authorization_endpoint": f"{self.issuer}/auth",
                "token_endpoint": f"{self.issuer}/token",
                "jwks_uri": f"{self.issuer}/keys",
            }

        @app.get("/keys")
        def keys():
            return {"keys": [KEY.as_dict(private=False)]}

        @app.post("/token")
        async def token(request: Request):
            form = await request.form()
            assert create_s256_code_challenge(form["code_verifier"]) == self.asked["code_challenge"]
            now = int(time.time())
            claims = {"iss": self.issuer, "aud": "cxr", "exp": now + 300, "iat": now, "nonce": self.asked["nonce"], **self.claims}
            signed = jwt.encode({"alg": self.algorithm, "kid": "k"}, claims, self.key, algorithms=[self.algorithm])
            return {"access_token": "a", "token_type": "Bearer", "id_token": signed}

        self._server = uvicorn.Server(uvicorn.Config(app, port=self.port, log_config=None, lifespan="off"))
        self._thread = threading.Thread(target=self._server.run)

    def __enter__(self):
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *_):
        self._server.should_exit = True
        self._thread.join(PATIENCE_S)

    def sign_in(self, browser, code="c"):
        """What the browser is led through; the answer at its return."""
        away = browser.get("/login/oidc?next=/studies")
        assert away.status_code == 303, away.text
        self.asked = {name: value[0] for name, value in parse_qs(urlsplit(away.headers["location"]).query).items()}
        return browser.get(f"/login/oidc/back?state={self.asked['state']}&code={code}")


@pytest.fixture(scope="module")
def running():
    with Provider() as provider:
        yield provider


@pytest.fixture
def provider(running):
    running.claims = {"sub": "1", "preferred_username": "dr.ann", "realm_access": {"roles": ["cxr-readers"]}}
    running.key = KEY
    return running


@pytest.fixture
def site(tmp_path, provider):
    oidc = {"issuer": provider.issuer, "client_id": "cxr", "client_secret": "s", "roles_claim": "realm_access.roles"}
    made = Site(tmp_path / "var", oidc=OidcSettings(**oidc, roles={"cxr-readers": "viewer", "cxr-admins": "admin"}))
    yield made
    made.close()


def test_a_user_of_the_provider_signs_in_with_the_role_of_the_claim(site, provider):
    browser = site.browser()
    back = provider.sign_in(browser)
    assert (back.status_code, back.headers["location"]) == (303, "/studies")
    assert provider.asked["redirect_uri"] == "http://127.0.0.1/login/oidc/back"
    assert provider.asked["code_challenge_method"] == "S256"
    assert browser.get("/api/v1/status").status_code == 200
    assert browser.get("/api/v1/users").status_code == 403
    assert site.events("user-logged-in") == [("user-logged-in", "success", "dr.ann")]


@pytest.mark.parametrize(
    "claims",
    [
        {"realm_access": {"roles": ["others"]}},
        {"realm_access": None},
        {"aud": "another client"},
        {"iss": "https://evil.example"},
        {"exp": 1},
        {"nonce": "another"},
        {"aud": ["cxr", "other"], "azp": "other"},
    ],
)
def test_who_has_no_role_or_no_right_token_stays_out(site, provider, claims):
    provider.claims |= claims
    browser = site.browser()
    assert provider.sign_in(browser).status_code in (403, 502)
    assert browser.get("/api/v1/status").status_code == 401
    assert site.events("user-logged-in") == []
    assert [outcome for _, outcome, _ in site.events("login-refused")] == ["failure"]


def test_a_token_with_another_key_s_signature_stays_out(site, provider):
    provider.key = OTHER_KEY
    browser = site.browser()
    assert provider.sign_in(browser).status_code == 502
    assert browser.get("/api/v1/status").status_code == 401


def test_a_return_that_another_browser_began_is_refused_and_each_counts_once(site, provider):
    first = site.browser()
    away = first.get("/login/oidc")
    state = parse_qs(urlsplit(away.headers["location"]).query)["state"][0]
    assert site.browser().get(f"/login/oidc/back?state={state}&code=c").status_code == 403
    assert first.get(f"/login/oidc/back?state={state}&code=c").status_code == 403
    assert site.browser().get("/login/oidc/back").status_code == 403


def test_log_ins_that_one_machine_begins_by_the_thousand_keep_nobody_out(site, provider, monkeypatch):
    monkeypatch.setattr(single_sign_on, "_MOST_LOGINS", 60)
    waiting, flooding = site.browser(client="192.0.2.9"), site.browser(client="192.0.2.7")
    assert waiting.get("/login/oidc").status_code == 303
    assert {flooding.get("/login/oidc").status_code for _ in range(80)} == {303}
    assert provider.sign_in(site.browser(client="192.0.2.8")).status_code == 303


@pytest.mark.parametrize("said", [[], "x", None])
def test_a_provider_that_answers_nonsense_is_told_of_as_one_that_is_away(site, monkeypatch, said):
    monkeypatch.setattr(httpx2.Response, "json", lambda _: said)
    assert site.browser().get("/login/oidc").status_code == 502


def test_the_strongest_role_of_the_claim_counts():
    settings = OidcSettings(issuer="https://x", client_id="c", roles={"a": "viewer", "b": "admin"})
    assert role_of({"roles": ["a", "b", 3]}, settings) == "admin"
    assert role_of({"roles": "a"}, settings) == "viewer"
    assert role_of({}, settings) == ""


def test_without_a_provider_there_is_none(tmp_path):
    site = Site(tmp_path / "var")
    assert site.browser().get("/login/oidc").status_code == 404
    site.close()
