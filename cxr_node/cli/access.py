"""`cxr-node user` and `cxr-node token`: users of the web pages and REST."""

from __future__ import annotations

import getpass
import json
import sys
from typing import Annotated, Any

import typer

from cxr_node.cli.common import AsJson, Config, open_engine, operator, print_table, time_in_words
from cxr_node.errors import CxrNodeError
from cxr_node.store.accounts import tokens, users
from cxr_node.store.times import iso

user_app = typer.Typer(help="Users of the web pages: add, list, disable, enable, role, passwd.", no_args_is_help=True)
token_app = typer.Typer(help="API tokens: create, list, revoke.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The name that the user signs in with.")]
Role = Annotated[
    str,
    typer.Option(
        help="viewer (read only), operator (also changes the queue), auditor (reads the audit log), admin (everything)."
    ),
]
FromInput = Annotated[bool, typer.Option("--password-stdin", help="Read the password from standard input.")]


def _print_json(rows: list[dict[str, Any]]) -> None:
    """Rows for programs, their times in ISO 8601."""
    said = [{key: iso(value) if key.endswith("_at") else value for key, value in row.items()} for row in rows]
    print(json.dumps(said, indent=2))


@user_app.command("add")
def user_add(name: Name, role: Role = "viewer", from_input: FromInput = False, config: Config = None) -> None:
    """Add a user; prompts for the password."""
    _check(name, role)
    new_hash = _new_hash(from_input=from_input)
    with open_engine(config) as engine:
        users.add(engine, name, role, new_hash, operator())
        users.end_link_sessions(engine)
    print(f"{name} may sign in as {role}.")


@user_app.command("list")
def user_list(config: Config = None, as_json: AsJson = False) -> None:
    """List the users. Times are UTC."""
    with open_engine(config) as engine:
        rows = users.listed(engine)
    if as_json:
        _print_json(rows)
        return
    print_table(
        [
            {
                "name": row["name"],
                "role": row["role"],
                "state": "may sign in" if row["disabled_at"] is None else f"disabled {time_in_words(row['disabled_at'])}",
                "last seen": time_in_words(row["seen_at"]),
            }
            for row in rows
        ]
    )


@user_app.command("disable")
def user_disable(name: Name, config: Config = None) -> None:
    """Disable a user; their sessions end at once."""
    with open_engine(config) as engine:
        users.set_disabled(engine, name, operator())
    print(f"{name} may no longer sign in.")


@user_app.command("enable")
def user_enable(name: Name, config: Config = None) -> None:
    """Enable a disabled user."""
    with open_engine(config) as engine:
        users.set_disabled(engine, name, operator(), disabled=False)
    print(f"{name} may sign in again.")


@user_app.command("role")
def user_role(name: Name, role: Annotated[str, typer.Argument(help="The new role.")], config: Config = None) -> None:
    """Change a user's role; it applies to open sessions at once."""
    _check(name, role)
    with open_engine(config) as engine:
        users.set_role(engine, name, role, operator())
    print(f"{name} is {role} now.")


@user_app.command("passwd")
def user_passwd(name: Name, from_input: FromInput = False, config: Config = None) -> None:
    """Set another password; the user's sessions end."""
    new_hash = _new_hash(from_input=from_input)
    with open_engine(config) as engine:
        users.set_password(engine, name, new_hash, operator())
    print(f"The password of {name} is set.")


@token_app.command("create")
def token_create(
    role: Annotated[str, typer.Option(help="Role of the token: viewer, operator, auditor, admin.")],
    days: Annotated[float, typer.Option(min=0.01, max=3650, help="Days until it expires.")],
    name: Annotated[str, typer.Option(help="Its purpose; the audit log uses this name.")] = "api",
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Create an API token and print it once: the node keeps only its hash."""
    _check(name, role)
    with open_engine(config) as engine:
        made = tokens.create(engine, name, role, days, operator())
    if as_json:
        print(json.dumps({"id": made.id, "token": made.secret, "expires_at": iso(made.expires_at)}, indent=2))
    else:
        print(made.secret)
        print(
            f"Token {made.id} is valid until {time_in_words(made.expires_at)}. It is shown only once: send it as "
            "`Authorization: Bearer …`.",
            file=sys.stderr,
        )


@token_app.command("list")
def token_list(config: Config = None, as_json: AsJson = False) -> None:
    """List the API tokens, not their secrets. Times are UTC."""
    with open_engine(config) as engine:
        rows = tokens.listed(engine)
    if as_json:
        _print_json(rows)
        return
    print_table(
        [
            {
                "id": row["id"],
                "name": row["name"],
                "role": row["role"],
                "made by": row["created_by"],
                "expires": time_in_words(row["expires_at"]),
                "revoked": time_in_words(row["revoked_at"]),
                "last used": time_in_words(row["used_at"]),
            }
            for row in rows
        ]
    )


@token_app.command("revoke")
def token_revoke(number: Annotated[int, typer.Argument(help="Its number.")], config: Config = None) -> None:
    """Revoke an API token; it is invalid at once."""
    with open_engine(config) as engine:
        tokens.revoke(engine, number, operator())
    print(f"Token {number} is no longer valid.")


def _check(name: str, role: str) -> None:
    if role not in users.ROLES:
        raise CxrNodeError(f"{role!r} is not a role; choose from {', '.join(users.ROLES)}.")
    if not 1 <= len(name) <= 64 or name != name.strip() or not name.isprintable():
        raise CxrNodeError("A name has 1 to 64 printable characters, without spaces around it.")


def _new_hash(*, from_input: bool) -> str:
    """Read a new password and hash it.

    Raises:
        CxrNodeError: the extra `web` is not installed, or the password is too short or too long.
    """
    try:
        from cxr_node.web import passwords
    except ModuleNotFoundError as error:
        raise CxrNodeError(f"Not installed: {error.name}. Users need the extra `web` (pip install 'cxr-node[web]').") from error
    return passwords.new_hash(_password(from_input=from_input))


def _password(*, from_input: bool) -> str:
    """Ask for a password twice, or take the first line of standard input."""
    if from_input:
        return sys.stdin.readline().rstrip("\r\n")
    if not sys.stdin.isatty():
        raise CxrNodeError("There is no terminal to read the password from: pipe it in with --password-stdin.")
    password = getpass.getpass("Password: ")
    if getpass.getpass("Again: ") != password:
        raise CxrNodeError("The two passwords differ: nothing was changed.")
    return password
