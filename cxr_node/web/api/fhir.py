"""The audit log for FHIR clients: AuditEvent of R4, searched as in IHE ITI-81.

Errors are problem details here too. Each search and each read is audited.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, HTTPException, Path, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

from cxr_node.audit.fhir import Page, audit_event, bundle, capability_statement
from cxr_node.audit.fhir_search import PARAMETERS, read_fhir, search_fhir
from cxr_node.errors import CxrNodeError
from cxr_node.settings import Settings
from cxr_node.web.access import User, need, record
from cxr_node.web.api.models import NOT_FOUND, Text

Auditor = Annotated[User, Depends(need("auditor"))]
JSON_NAMES = ("json", "application/json", "application/fhir+json")


class FhirResponse(JSONResponse):
    """JSON as FHIR names it."""

    media_type = "application/fhir+json"


class Resource(BaseModel):
    """A resource of FHIR R4, whose specification says what is in it."""

    model_config = ConfigDict(extra="allow")

    resourceType: str  # noqa: N815 - FHIR's name


class AuditEventResource(Resource):
    """AuditEvent of R4, as in IHE's Basic Audit Log Patterns."""

    resourceType: Literal["AuditEvent"]  # noqa: N815
    id: str
    recorded: str


class Bundle(Resource):
    """A page of what a search found, newest first; the link `next` leads to the following one."""

    resourceType: Literal["Bundle"]  # noqa: N815
    type: Literal["searchset"]
    link: list[dict[str, str]]
    entry: list[dict[str, Any]]


def _parameter(name: str) -> Any:
    return Query(alias=name, description=PARAMETERS[name][1])


Format = Annotated[Text, Query(alias="_format", description="JSON is all there is")]
router = APIRouter(prefix="/fhir", tags=["audit"], default_response_class=FhirResponse)


@router.get("/metadata", response_model=Resource)
def metadata(request: Request, _who: Auditor, _format: Format = "json") -> dict[str, Any]:
    """The CapabilityStatement: what can be asked here."""
    _check_format(_format)
    return capability_statement(PARAMETERS, datetime.now(UTC).date().isoformat())


@router.get("/AuditEvent", response_model=Bundle)
async def search(  # one parameter each, for the document
    request: Request,
    who: Auditor,
    _id: Annotated[Text | None, _parameter("_id")] = None,
    date: Annotated[list[Text] | None, _parameter("date")] = None,
    address: Annotated[Text | None, _parameter("address")] = None,
    address_exact: Annotated[Text | None, _parameter("address:exact")] = None,
    agent: Annotated[Text | None, _parameter("agent")] = None,
    agent_identifier: Annotated[Text | None, _parameter("agent.identifier")] = None,
    agent_name: Annotated[Text | None, _parameter("agent-name")] = None,
    agent_name_exact: Annotated[Text | None, _parameter("agent-name:exact")] = None,
    patient: Annotated[Text | None, _parameter("patient")] = None,
    patient_identifier: Annotated[Text | None, _parameter("patient.identifier")] = None,
    entity: Annotated[Text | None, _parameter("entity")] = None,
    entity_identifier: Annotated[Text | None, _parameter("entity.identifier")] = None,
    entity_type: Annotated[Text | None, _parameter("entity-type")] = None,
    of_type: Annotated[Text | None, _parameter("type")] = None,
    subtype: Annotated[Text | None, _parameter("subtype")] = None,
    action: Annotated[Text | None, _parameter("action")] = None,
    outcome: Annotated[Text | None, _parameter("outcome")] = None,
    source: Annotated[Text | None, _parameter("source")] = None,
    source_identifier: Annotated[Text | None, _parameter("source.identifier")] = None,
    _count: Annotated[Text | None, _parameter("_count")] = None,
    _before: Annotated[Text | None, _parameter("_before")] = None,
    _sort: Annotated[Literal["-date"], Query(alias="_sort", description="Newest first is the only order")] = "-date",
    _format: Format = "json",
) -> dict[str, Any]:
    """Events of the audit log as a Bundle, newest first (ITI-81); all that is given has to match. Audited as a search."""
    _check_format(_format)
    params = [(name, value) for name, value in request.query_params.multi_items() if name in PARAMETERS]
    source_id = _source_id(request)

    def find() -> Page:
        try:
            return search_fhir(request.app.state.engine, params, source_id)
        except CxrNodeError as error:
            raise HTTPException(400, str(error)) from error

    page = await run_in_threadpool(find)
    await _tell(request, who, dict(params) | {"date": date} if date else dict(params))
    return bundle(page, str(request.url), source_id)


@router.get("/AuditEvent/{number}", response_model=AuditEventResource, responses=NOT_FOUND)
async def read(
    request: Request, who: Auditor, number: Annotated[int, Path(ge=1, le=2**31 - 1)], _format: Format = "json"
) -> dict[str, Any]:
    """One event. Audited as a search."""
    _check_format(_format)
    row = await run_in_threadpool(read_fhir, request.app.state.engine, number)
    await _tell(request, who, {"_id": str(number)})
    if row is None:
        raise HTTPException(404, f"There is no event {number}: it may have been exported and purged.")
    return audit_event(row, _source_id(request))


async def _tell(request: Request, who: User, asked: Mapping[str, Any]) -> None:
    patient = next((asked[name] for name in ("patient", "patient.identifier") if name in asked), "")
    detail = json.dumps({"fhir": dict(asked)}, ensure_ascii=False)
    await record(request, "audit-searched", who, detail=detail, patient_id=patient.rpartition("|")[2].removeprefix("Patient/"))


def _source_id(request: Request) -> str:
    settings: Settings = request.app.state.settings
    return settings.audit.source_id or settings.node.ae_title


def _check_format(wanted: str) -> None:
    if wanted.replace(" ", "+") not in JSON_NAMES:
        raise HTTPException(400, f"_format={wanted!r}: answers are in JSON.")
