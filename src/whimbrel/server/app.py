"""The HTTP application of one open home."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from whimbrel.errors import WhimbrelError
from whimbrel.server import answers
from whimbrel.server.auth import Guard
from whimbrel.server.cors import Cors, Origins
from whimbrel.server.hosts import OwnNames
from whimbrel.server.limits import Bounds
from whimbrel.server.logs import RequestLog
from whimbrel.server.openapi import PROBLEMS, Api
from whimbrel.server.routes import collections, conversations, docs, documents, health, jobs, moves, search, usage
from whimbrel.server.served import Served
from whimbrel.server.version import version

if TYPE_CHECKING:
    from whimbrel.app import Whimbrel


def create_app(whimbrel: Whimbrel) -> FastAPI:
    """An ASGI application over a home. It neither owns nor closes it; `serve` does.

    All searches must come from one event loop: what is opened on a loop stays with it.
    """
    settings = whimbrel.settings
    app = Api(
        title="Whimbrel",
        version=version(),
        description="Documents in, checked citations out.",
        docs_url=None,
        redoc_url=None,
        responses=PROBLEMS,
        telemetry={"tracing": False, "metrics": False, "logs": False},
        strict_content_type=False,
    )
    served = app.state.served = Served(whimbrel)
    for routes in (search, conversations, documents, collections, jobs, moves, usage, health, docs):
        app.include_router(routes.router)
    app.add_exception_handler(WhimbrelError, answers.on_whimbrel_error)
    app.add_exception_handler(HTTPException, answers.on_http_error)
    app.add_exception_handler(RequestValidationError, answers.on_invalid)
    origins = Origins(settings.server.cors_origins)
    app.add_middleware(Bounds, limits=settings.server)
    app.add_middleware(
        Guard, keys=settings.parsed_api_keys(), own_names=OwnNames(settings.server.allowed_hosts), origins=origins
    )
    app.add_middleware(Cors, origins=origins)
    app.add_middleware(RequestLog, observe=served.metrics.answered_request)  # the last one added is outermost
    return app
