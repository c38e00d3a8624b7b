"""Single sign-on by OpenID Connect: the authorization code flow with PKCE, with Authlib."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import Any

import structlog
from authlib.integrations.httpx_client import AsyncOAuth2Client, OAuthError
from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import RedirectResponse, Response
from httpx2 import HTTPError
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from cxr_node.peer_address import site_of
from cxr_node.settings import OidcSettings, Settings
from cxr_node.web.access import User, client_of, record, set_cookie
from cxr_node.web.sign_in import begin_session, refusal_page, safe_target

log = structlog.get_logger()
router = APIRouter(include_in_schema=False)

_COOKIE, _LOGIN_S, _PROVIDER_KEPT_S = "cxr-node-sso", 600.0, 600.0
_MOST_LOGINS, _MOST_OF_ONE = 1000, 20
"""That have begun and not come back: in all, and of one address, whose oldest is then forgotten."""
_TIMEOUT_S = 10.0
_ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
"""Signatures by a key of the provider alone: neither "none" nor HMAC."""
_STRENGTH = ("viewer", "auditor", "operator", "admin")


class Provider:
    """What the provider publishes of itself, and the log-ins that have begun and not come back."""

    def __init__(self, settings: OidcSettings) -> None:
        self.settings = settings
        self._document: tuple[float, dict[str, Any]] | None = None
        self._lock = asyncio.Lock()
        self._begun: dict[str, dict[str, Any]] = {}

    async def document(self, client: AsyncOAuth2Client) -> dict[str, Any]:
        """Its discovery document, with `keys`; fetched again after ten minutes.

        Raises:
            HTTPError: it can't be reached.
            ValueError: what it says can't be used.
        """
        async with self._lock:
            now = time.monotonic()
            if self._document is None or now - self._document[0] > _PROVIDER_KEPT_S:
                found = await _get(client, f"{self.settings.issuer}/.well-known/openid-configuration")
                if str(found.get("issuer", "")).rstrip("/") != self.settings.issuer:
                    raise ValueError("the provider names another issuer than web.oidc.issuer")
                found["keys"] = await _get(client, found["jwks_uri"])
                self._document = (now, found)
            return self._document[1]

    def begin(self, login: dict[str, Any], site: str) -> str:
        """Remember a log-in that begins, of this address (see `site_of`); gives its state."""
        now = time.monotonic()
        self._begun = {state: one for state, one in self._begun.items() if now - one["at"] < _LOGIN_S}
        same = [state for state, one in self._begun.items() if one["site"] == site]
        if len(same) >= _MOST_OF_ONE:
            del self._begun[same[0]]
        if len(self._begun) >= _MOST_LOGINS:
            raise HTTPException(503, "Too many log-ins have begun: try again in some minutes.", {"Retry-After": "60"})
        state = secrets.token_urlsafe(32)
        self._begun[state] = {**login, "at": now, "site": site}
        return state

    def end(self, state: str) -> dict[str, Any] | None:
        """The log-in of a state, once."""
        login = self._begun.pop(state, None)
        return login if login is not None and time.monotonic() - login["at"] < _LOGIN_S else None


@router.get("/login/oidc")
async def begin(request: Request, next: str = "/") -> Response:
    """Send the browser to the provider."""
    provider = _provider(request)
    try:
        async with _client(request, provider) as client:
            document = await provider.document(client)
            login = {"verifier": secrets.token_urlsafe(48), "nonce": secrets.token_urlsafe(32), "next": safe_target(next)}
            login["browser"] = secrets.token_urlsafe(32)
            state = provider.begin(login, site_of(client_of(request)))
            address, _ = client.create_authorization_url(
                document["authorization_endpoint"], state=state, nonce=login["nonce"], code_verifier=login["verifier"]
            )
    except (HTTPError, ValueError, KeyError) as error:
        return await _failed(request, error)
    response = RedirectResponse(address, 303)
    set_cookie(request, response, _COOKIE, login["browser"], _LOGIN_S)
    return response


@router.get("/login/oidc/back")
async def back(request: Request, state: str = "", code: str = "", error: str = "") -> Response:
    """Where the provider sends the browser back to: exchange the code, check the ID token, begin a session."""
    provider = _provider(request)
    login = provider.end(state)
    if login is None or not secrets.compare_digest(login["browser"].encode(), request.cookies.get(_COOKIE, "").encode()):
        return await _refused(request, "it began in another browser, or too long ago", "The log-in took too long: try again.")
    if error or not code:
        return await _refused(request, "refused by the provider", "The provider did not sign you in: try again.")
    try:
        async with _client(request, provider) as client:
            document = await provider.document(client)
            answer = await client.fetch_token(
                document["token_endpoint"], grant_type="authorization_code", code=code, code_verifier=login["verifier"]
            )
        claims = checked(str(answer["id_token"]), document["keys"], provider.settings, login["nonce"])
    except (HTTPError, OAuthError, JoseError, ValueError, KeyError) as failure:
        return await _failed(request, failure)
    name, role = str(claims.get(provider.settings.name_claim) or claims["sub"])[:64], role_of(claims, provider.settings)
    if not role:
        message = f"{name} is signed in there and has no role here: ask your administrator for one of those in web.oidc.roles."
        return await _refused(request, "no role in the claim", message, name)
    response = await begin_session(request, User(name, role, "oidc"), login["next"])
    set_cookie(request, response, _COOKIE, "", 0)
    return response


def checked(id_token: str, keys: dict[str, Any], settings: OidcSettings, nonce: str) -> dict[str, Any]:
    """The claims of an ID token (OpenID Connect Core 3.1.3.7).

    Raises:
        JoseError: its signature is wrong, its time is over, or it is for another client, from another issuer.
        ValueError: its nonce is another, or it names no one.
    """
    token = jwt.decode(id_token, KeySet.import_key_set(keys), algorithms=_ALGORITHMS)  # type: ignore[arg-type]
    registry = jwt.JWTClaimsRegistry(
        leeway=60, exp={"essential": True}, aud={"essential": True, "value": settings.client_id}, sub={"essential": True}
    )
    registry.validate(token.claims)
    claims = dict(token.claims)
    if str(claims.get("iss", "")).rstrip("/") != settings.issuer:
        raise ValueError("the ID token is from another issuer")
    if isinstance(claims["aud"], list) and len(claims["aud"]) > 1 and claims.get("azp") != settings.client_id:
        raise ValueError("the ID token is for another client")
    if not secrets.compare_digest(str(claims.get("nonce", "")).encode(), nonce.encode()):
        raise ValueError("the ID token belongs to another log-in")
    return claims


def role_of(claims: dict[str, Any], settings: OidcSettings) -> str:
    """The strongest role that the claim gives; empty: none."""
    found: Any = claims
    for part in settings.roles_claim.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    values = [found] if isinstance(found, str) else found if isinstance(found, list) else []
    roles = {settings.roles[value] for value in values if isinstance(value, str) and value in settings.roles}
    return max(roles, key=_STRENGTH.index, default="")


def _provider(request: Request) -> Provider:
    settings: Settings = request.app.state.settings
    if getattr(request.app.state, "provider", None) is None:
        request.app.state.provider = Provider(settings.web.oidc)
    provider: Provider = request.app.state.provider
    return provider


def _client(request: Request, provider: Provider) -> AsyncOAuth2Client:
    settings: Settings = request.app.state.settings
    root = settings.web.public_url.rstrip("/") or str(request.base_url).rstrip("/")
    return AsyncOAuth2Client(
        provider.settings.client_id,
        provider.settings.client_secret.get_secret_value() or None,
        scope=" ".join(provider.settings.scopes),
        redirect_uri=f"{root}/login/oidc/back",
        code_challenge_method="S256",
        token_endpoint_auth_method="client_secret_basic" if provider.settings.client_secret.get_secret_value() else "none",
        timeout=_TIMEOUT_S,
    )


async def _get(client: AsyncOAuth2Client, address: str) -> dict[str, Any]:
    answer = await client.request("GET", address, withhold_token=True)
    answer.raise_for_status()
    found = answer.json()
    if not isinstance(found, dict):
        raise ValueError("the provider's answer is no JSON object")
    return found


async def _failed(request: Request, error: Exception) -> Response:
    log.warning("single sign-on failed", exc_info=error)
    return await _refused(
        request, f"the provider: {type(error).__name__}", "Single sign-on doesn't work now; the node's log says why.", status=502
    )


async def _refused(request: Request, why: str, message: str, name: str = "", status: int = 403) -> Response:
    user = User(name, "", "oidc") if name else None
    await record(request, "login-refused", user, outcome="failure", detail=f"single sign-on: {why}")
    return await refusal_page(request, message, status)
