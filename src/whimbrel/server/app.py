"""The HTTP application of one open home.

No web page describes it: the usual ones load scripts from another server. `/openapi.json` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from whimbrel.errors import WhimbrelError
from whimbrel.server import answers
from whimbrel.server.auth import Guard
from whimbrel.server.limits import BodyLimit
from whimbrel.server.logs import RequestLog
from whimbrel.server.routes import documents, health, jobs, search
from whimbrel.server.served import Served
from whimbrel.server.shapes import ErrorShape
from whimbrel.server.version import version

if TYPE_CHECKING:
    from whimbrel.app import Whimbrel


def create_app(whimbrel: Whimbrel) -> FastAPI:
    """An ASGI application over a home. It neither owns nor closes it; `serve` does.

    All searches must come from one event loop: what is opened on a loop stays with it.
    """
    settings = whimbrel.settings
    app = FastAPI(
        title="Whimbrel",
        version=version(),
        description="Documents in, checked citations out.",
        docs_url=None,
        redoc_url=None,
        responses={"default": {"model": ErrorShape, "description": "What went wrong, and the way out"}},
        telemetry={"tracing": False, "metrics": False, "logs": False},
        strict_content_type=False,
    )
    app.state.served = Served(whimbrel)
    for routes in (search, documents, jobs, health):
        app.include_router(routes.router)
    app.add_exception_handler(WhimbrelError, answers.on_whimbrel_error)
    app.add_exception_handler(HTTPException, answers.on_http_error)
    app.add_exception_handler(RequestValidationError, answers.on_invalid)
    app.add_middleware(BodyLimit, limit=settings.server.max_body_bytes)
    app.add_middleware(Guard, keys=settings.parsed_api_keys())
    app.add_middleware(RequestLog)  # the last one added is outermost
    return app
