"""The page: plain HTML, CSS and modules of JavaScript, which lie in ``page/`` and fetch nothing from elsewhere."""

from __future__ import annotations

from importlib import resources

from fastapi import FastAPI
from fastapi.responses import Response
from starlette.exceptions import HTTPException

POLICY = "; ".join(
    [
        "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        "script-src 'self'; style-src 'self'; connect-src 'self'; media-src blob:; img-src 'self' data:",
    ]
)
MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
PAGE_PATHS = "/page/"
"""What the paths of the page's files begin with."""


def add_page_routes(app: FastAPI) -> None:
    """Add ``/`` and ``/page/NAME``."""
    folder = resources.files(__package__).joinpath("page")
    files = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}

    @app.get("/", include_in_schema=False)
    def show_page() -> Response:
        return show_file("index.html")

    @app.get("/page/{name}", include_in_schema=False)
    def show_file(name: str) -> Response:
        if name not in files:
            raise HTTPException(404, f"the page has no file {name!r}")
        headers = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}
        return Response(files[name], media_type=MEDIA_TYPES["." + name.rsplit(".", 1)[-1]], headers=headers)
