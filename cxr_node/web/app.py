"""Assembles the web application from its modules: pages, sign-in, health."""

from __future__ import annotations

from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles

from cxr_node.audit.refusal_events import RefusalEvents
from cxr_node.security.event_budget import LogThrottle
from cxr_node.settings import Settings
from cxr_node.store.views.node_status import node_status
from cxr_node.web import access, api, health, metrics, pages, problems, sign_in
from cxr_node.web.limits import Limits
from cxr_node.web.pictures import PictureServer
from cxr_node.web.timed_cache import TimedCache
from cxr_node.web.upload_analysis import Scratch

if TYPE_CHECKING:
    from sqlalchemy import Engine

_STATUS_S = 2.0
_SEEN_S = 3600.0
"""A thumbnail that a user sees again within this time is no new event."""
_HERE = Path(__file__).parent


def create_app(settings: Settings, engine: Engine, config: Path | None = None) -> FastAPI:
    """The application.

    Args:
        settings: the settings tree.
        engine: the database, open for reading and writing; the caller closes it, after `close_app`.
        config: the settings file, for the commands that the application runs as child processes.
    """
    app = FastAPI(title="cxr-node", version=_version(), docs_url=None, redoc_url=None, openapi_url=None)
    app.state.settings, app.state.engine, app.state.config = settings, engine, config
    app.state.status = TimedCache(lambda: node_status(settings), _STATUS_S)
    app.state.metrics = metrics.make(settings, engine)
    app.state.refusals = RefusalEvents(engine)
    app.state.thumbnails_seen = LogThrottle(_SEEN_S)
    app.state.scratch, app.state.pictures = Scratch(), PictureServer(settings)
    app.state.uploads = Counter()
    problems.install(app)
    access.install(app)
    app.include_router(health.router)
    app.include_router(metrics.router)
    app.include_router(sign_in.router)
    if settings.web.oidc.issuer:
        from cxr_node.web import single_sign_on  # what it needs takes memory, which only who signs in so pays for

        app.include_router(single_sign_on.router)
    app.include_router(api.router)
    app.include_router(pages.router)
    app.mount("/static", StaticFiles(directory=_HERE / "static"), name="static")
    inner, web = app.build_middleware_stack, settings.web  # around all else, so that error answers have their headers too
    app.build_middleware_stack = lambda: Limits(inner(), web.max_upload_mb << 20, web.upload_timeout_s)  # type: ignore[method-assign]
    return app


def close_app(app: FastAPI) -> None:
    """End the child processes and the threads of an application: nothing uses its database after that."""
    app.state.pictures.close()
    app.state.status.close()
    app.state.metrics.close()
    app.state.refusals.write()


def _version() -> str:
    try:
        return version("cxr-node")
    except PackageNotFoundError:  # run from a source tree
        return "0"
