"""The web pages."""

from __future__ import annotations

from fastapi import APIRouter

from cxr_node.web.pages import audit, overview, queue, setup, studies, study, trial

router = APIRouter(include_in_schema=False)
for _page in (overview, studies, study, queue, audit, trial, setup):
    router.include_router(_page.router)
