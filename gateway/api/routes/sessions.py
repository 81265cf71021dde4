"""GET and DELETE /v1/sessions/{id}."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request

from gateway.api.headers import check_session_id
from gateway.api.openapi import ID_SCHEMA, refusals
from gateway.app_state import AppState
from gateway.backends.session_store import document
from gateway.errors import ApiError
from gateway.schema.responses import SessionCard, SessionDeleted

router = APIRouter()

SessionId = Annotated[str, Path(json_schema_extra={"pattern": ID_SCHEMA["pattern"]})]
_REFUSALS = refusals(400, 401, 404, 500)


def _unknown(session: str) -> ApiError:
    return ApiError(404, f"There is no session {session!r}.", code="session_not_found")


@router.get("/v1/sessions/{session}", response_model=SessionCard, responses=_REFUSALS)
async def get_session(session: SessionId, request: Request) -> dict[str, Any]:
    """Say where a session is."""
    services: AppState = request.app.state.services
    record = await services.sessions.get(check_session_id(session))
    if record is None:
        raise _unknown(session)
    return document(session, record)


@router.delete("/v1/sessions/{session}", response_model=SessionDeleted, responses=_REFUSALS)
async def delete_session(session: SessionId, request: Request) -> dict[str, Any]:
    """Forget where a session is. What it generates at the moment goes on."""
    services: AppState = request.app.state.services
    if not await services.sessions.delete(check_session_id(session)):
        raise _unknown(session)
    return {"id": session, "object": "session.deleted", "deleted": True}
