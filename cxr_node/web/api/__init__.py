"""REST under /api/v1."""

from __future__ import annotations

from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.dependencies.models import Dependant

from cxr_node.web.api import accounts, analyze, audit, destinations, fhir, queue, reference, status, studies
from cxr_node.web.api.models import PROBLEMS


async def known_parameters(request: Request) -> None:
    """Refuse a query parameter that the route doesn't have: a mistyped filter would choose everything.

    Raises:
        HTTPException: 422, naming those there are.
    """
    known = _query_parameters(request.scope["route"].dependant)
    unknown = sorted(set(request.query_params) - set(known))
    if unknown:
        raise HTTPException(422, f"There is no parameter {unknown[0][:40]!r} here; there are: {', '.join(known) or 'none'}.")


router = APIRouter(prefix="/api/v1", responses=PROBLEMS, dependencies=[Depends(known_parameters)])
for _part in (status, studies, queue, audit, fhir, destinations, analyze, accounts, reference):
    router.include_router(_part.router)


def _query_parameters(dependant: Dependant) -> list[str]:
    """Of a route and of all that it depends on."""
    own = [parameter.alias for parameter in dependant.query_params]
    return own + [name for inner in dependant.dependencies for name in _query_parameters(inner)]
