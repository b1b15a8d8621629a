"""Keys that clients show as ``Authorization: Bearer KEY``, as OpenAI's do."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from .errors import error_response
from .page_routes import PAGE_PATHS

OPEN_PATHS = frozenset(("/", "/health", "/ready", "/docs", "/openapi.json"))
"""What is shown without a key: the page and the documentation, and whether the server is well."""
WEBSOCKET_KEY = "openai-insecure-api-key."
"""What begins the subprotocol in which browsers, which cannot set headers of a WebSocket, send a key."""


class ApiKeyMiddleware:
    """Refuses requests without one of some keys. Whose key it was is ``scope["api_client"]``, as a digest."""

    def __init__(self, app: ASGIApp, keys: Iterable[str]) -> None:
        self.app = app
        self.digests = [_digest(key) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on if it may."""
        if scope["type"] not in ("http", "websocket") or _is_open(scope["path"]):
            return await self.app(scope, receive, send)
        digest = _digest(_key_of(scope))
        if any([hmac.compare_digest(digest, known) for known in self.digests]):  # all of them, for equal time
            scope["api_client"] = digest.hex()[:16]
            return await self.app(scope, receive, send)
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008, "reason": "no key, or an unknown one"})
        message = "no key, or an unknown one: send Authorization: Bearer KEY"
        await error_response(401, message, {"WWW-Authenticate": "Bearer"})(scope, receive, send)


def _is_open(path: str) -> bool:
    return path in OPEN_PATHS or path.startswith(PAGE_PATHS)


def _key_of(scope: Scope) -> str:
    headers = {name: value.decode("utf-8", "replace") for name, value in scope["headers"]}
    scheme, _, key = headers.get(b"authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return key.strip()
    offered = headers.get(b"sec-websocket-protocol", "").split(",") if scope["type"] == "websocket" else []
    found = [name.strip()[len(WEBSOCKET_KEY) :] for name in offered if name.strip().startswith(WEBSOCKET_KEY)]
    return found[0] if found else ""


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
