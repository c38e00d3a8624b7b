"""Users and API tokens, for administrators."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Path, Request, Response

from cxr_node.errors import StoreError
from cxr_node.store.accounts import tokens, users
from cxr_node.web import passwords
from cxr_node.web.access import User, need
from cxr_node.web.api.models import (
    CONFLICT,
    NOT_FOUND,
    Account,
    AccountChange,
    MadeToken,
    NewAccount,
    NewToken,
    Token,
)

router = APIRouter(tags=["access"])
Admin = Annotated[User, Depends(need("admin"))]
Name = Annotated[str, Path(max_length=64, pattern=r"^[^\x00]+$")]


@router.get("/users", response_model=list[Account])
def list_users(request: Request, _admin: Admin) -> list[dict[str, Any]]:
    """All users."""
    return users.listed(request.app.state.engine)


@router.post("/users", response_model=Account, status_code=201, responses=CONFLICT)
def add_user(request: Request, admin: Admin, new: NewAccount) -> dict[str, Any]:
    """Add a user."""
    engine = request.app.state.engine
    users.add(engine, new.name, new.role, passwords.new_hash(new.password), admin.name)
    users.end_link_sessions(engine)
    return _user(request, new.name)


@router.patch("/users/{name}", response_model=Account, responses=NOT_FOUND)
def change_user(request: Request, admin: Admin, name: Name, change: AccountChange) -> dict[str, Any]:
    """Change a user's role or password, disable or enable them."""
    engine = request.app.state.engine
    _user(request, name)
    if change.role is not None:
        users.set_role(engine, name, change.role, admin.name)
    if change.password is not None:
        users.set_password(engine, name, passwords.new_hash(change.password), admin.name)
    if change.disabled is not None:
        users.set_disabled(engine, name, admin.name, disabled=change.disabled)
    return _user(request, name)


@router.get("/tokens", response_model=list[Token])
def list_tokens(request: Request, _admin: Admin) -> list[dict[str, Any]]:
    """All API tokens, without their secrets."""
    return tokens.listed(request.app.state.engine)


@router.post("/tokens", response_model=MadeToken, status_code=201)
def create_token(request: Request, admin: Admin, new: NewToken) -> dict[str, Any]:
    """Make an API token; its secret is in this answer alone."""
    made = tokens.create(request.app.state.engine, new.name, new.role, new.days, admin.name)
    return {"id": made.id, "token": made.secret, "expires_at": made.expires_at}


@router.delete("/tokens/{number}", status_code=204, responses=NOT_FOUND)
def revoke_token(request: Request, admin: Admin, number: Annotated[int, Path(ge=1, le=2**31 - 1)]) -> Response:
    """Make an API token invalid at once."""
    try:
        tokens.revoke(request.app.state.engine, number, admin.name)
    except StoreError as error:
        raise HTTPException(404, str(error)) from error
    return Response(status_code=204)


def _user(request: Request, name: str) -> dict[str, Any]:
    for row in users.listed(request.app.state.engine):
        if row["name"] == name:
            return row
    raise HTTPException(404, "There is no such user.")
