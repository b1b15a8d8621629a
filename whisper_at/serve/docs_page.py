"""A page of all routes and their fields, made of the application's own OpenAPI: nothing is fetched from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}
table{border-collapse:collapse;width:100%}td,th{border-bottom:1px solid #8884;padding:.25rem .6rem;text-align:left;
vertical-align:top}code{font-size:.95em}h2{margin-top:2rem;font-size:1.1rem}
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def docs_page(openapi: dict[str, Any]) -> str:
    """Return the page as HTML."""
    title = escape(f"{openapi['info']['title']} {openapi['info']['version']}")
    body = "".join(
        _route(method, path, operation, openapi)
        for path, operations in openapi["paths"].items()
        for method, operation in operations.items()
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{STYLE}</style></head>'
        f'<body><h1>{title}</h1><p>As a schema: <a href="openapi.json">openapi.json</a></p>{body}</body></html>'
    )


def _route(method: str, path: str, operation: dict[str, Any], openapi: dict[str, Any]) -> str:
    parts = [f"<h2><code>{escape(method.upper())} {escape(path)}</code></h2>"]
    parts += [f"<p>{escape(operation['description'])}</p>"] if operation.get("description") else []
    rows = [
        (one["name"], one.get("schema", {}), one.get("description", ""), one.get("required", False))
        for one in operation.get("parameters", ())
    ]
    for content in operation.get("requestBody", {}).get("content", {}).values():
        schema = _resolve(content["schema"], openapi)
        required = schema.get("required", ())
        rows += [
            (name, one, one.get("description", ""), name in required) for name, one in schema["properties"].items()
        ]
    if rows:
        head = "<tr><th>field</th><th>type</th><th>meaning</th></tr>"
        cells = "".join(_row(*row, openapi) for row in rows)
        parts.append(f"<table>{head}{cells}</table>")
    return "".join(parts)


def _row(name: str, schema: dict[str, Any], description: str, required: bool, openapi: dict[str, Any]) -> str:
    kind = " or ".join(dict.fromkeys(_types(schema, openapi)))
    default = schema.get("default")
    hint = "required" if required else "" if default in (None, "", []) else f"default {default}"
    meaning = "; ".join(part for part in (description, hint) if part)
    return f"<tr><td><code>{escape(name)}</code></td><td>{escape(kind)}</td><td>{escape(meaning)}</td></tr>"


def _types(schema: dict[str, Any], openapi: dict[str, Any]) -> Iterator[str]:
    schema = _resolve(schema, openapi)
    if "anyOf" in schema:
        for one in schema["anyOf"]:
            if one.get("type") != "null":
                yield from _types(one, openapi)
    elif "enum" in schema:
        yield ", ".join(map(str, schema["enum"]))
    elif schema.get("type") == "array":
        yield "list of " + " or ".join(_types(schema["items"], openapi))
    elif "contentMediaType" in schema or schema.get("format") == "binary":
        yield "file"
    else:
        yield str(schema.get("const", schema.get("type", "any")))


def _resolve(schema: dict[str, Any], openapi: dict[str, Any]) -> dict[str, Any]:
    reference = schema.get("$ref")
    return openapi["components"]["schemas"][reference.rsplit("/", 1)[1]] if reference else schema
