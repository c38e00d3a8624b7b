"""Routes that take files: nothing of a file is received before it is clear who sends it, and a user has a few under way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute

from cxr_node.web.access import check_role, signed_in
from cxr_node.web.problems import NotSignedIn

_MOST_AT_ONCE, _MOST_OF_ONE = 12, 4
"""Files under way, from their first byte to their answer: each is up to web.max_upload_mb of the folder for temporary files."""


def upload_route(*roles: str) -> type[APIRoute]:
    """The class of a router's routes, for `roles` alone.

    FastAPI receives the whole form of a request, and keeps its files on the disk, before it asks any dependency.
    """

    class UploadRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            inner = super().get_route_handler()

            async def handle(request: Request) -> Response:
                if request.method != "POST":
                    return await inner(request)
                user = await signed_in(request)
                if user is None:
                    raise NotSignedIn
                await check_role(request, user, roles)
                under_way: Counter[str] = request.app.state.uploads
                if under_way.total() >= _MOST_AT_ONCE or under_way[user.name] >= _MOST_OF_ONE:
                    raise HTTPException(
                        503, "Too many files are under way: try again when one has its answer.", {"Retry-After": "10"}
                    )
                under_way[user.name] += 1
                try:
                    return await inner(request)
                finally:
                    under_way[user.name] -= 1
                    if not under_way[user.name]:
                        del under_way[user.name]

            return handle

    return UploadRoute
