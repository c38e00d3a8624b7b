"""The OpenAPI document, and a page of it that loads nothing from other hosts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, Response
from fastapi.templating import Jinja2Templates
from pydantic.json_schema import models_json_schema

from cxr_node.web.api.models import Problem

router = APIRouter(include_in_schema=False)
_templates = Jinja2Templates(Path(__file__).parent.parent / "templates")
_INTRODUCTION = (
    "The functions of the web pages, for programs. Every request carries an API token (`cxr-node token create`) as "
    "`Authorization: Bearer …`, or the session's cookie and, where it changes something, the header X-CSRF-Token. "
    "Errors are problem details (RFC 9457)."
)


@router.get("/openapi.json")
async def openapi(request: Request) -> Response:
    """The document, OpenAPI 3.1."""
    return JSONResponse(document(request))


@router.get("/docs")
async def docs(request: Request) -> Response:
    """The document for people."""
    return _templates.TemplateResponse(request, "reference.html", {"document": document(request), "user": None})


def document(request: Request) -> dict[str, Any]:
    """The OpenAPI document of /api/v1, made once."""
    app = request.app
    if getattr(app.state, "openapi", None) is None:
        made = get_openapi(title="cxr-node", version=app.version, description=_INTRODUCTION, routes=app.routes)
        schemas = made.setdefault("components", {}).setdefault("schemas", {})
        _, known = models_json_schema([(Problem, "serialization")], ref_template="#/components/schemas/{model}")
        schemas |= known["$defs"]
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        made["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        made["security"] = [{"token": []}]
        app.state.openapi = made
    found: dict[str, Any] = app.state.openapi
    return found
