"""The API for people: a page made from /openapi.json in the browser. Nothing of it comes from another host."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import Response

router = APIRouter(include_in_schema=False)

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


@router.get("/docs")
async def page() -> Response:
    return Response(_read("page.html"), media_type="text/html", headers=HEADERS)


@router.get("/docs/page.js")
async def script() -> Response:
    return Response(_read("page.js"), media_type="text/javascript", headers=HEADERS)


@router.get("/docs/page.css")
async def style() -> Response:
    return Response(_read("page.css"), media_type="text/css", headers=HEADERS)


@cache
def _read(name: str) -> bytes:
    return files("whimbrel.server").joinpath("page", name).read_bytes()
