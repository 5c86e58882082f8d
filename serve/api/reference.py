"""The page at ``/docs``: the OpenAPI description as plain HTML, with nothing from outside and no script."""

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

_STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
code { font-family: ui-monospace, monospace }
h2 { margin-top: 2.5rem; border-top: 1px solid; padding-top: 1rem }
div { overflow-x: auto }
table { border-collapse: collapse }
th, td { text-align: left; vertical-align: top; padding: .2rem 1rem .2rem 0 }
"""


def reference_page(description: Mapping[str, Any]) -> str:
    """An HTML page that says what an OpenAPI description says: paths, fields, answers and errors."""
    info = description["info"]
    title = escape(f"{info['title']} {info['version']}")
    parts = [f"<h1>{title}</h1><p>{escape(info.get('description', ''))}</p>"]
    parts.append('<p>For programs: <a href="openapi.json">openapi.json</a></p>')
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            parts.append(f"<h2><code>{method.upper()} {escape(path)}</code></h2>{_operation(operation)}")
    for name, schema in description.get("components", {}).get("schemas", {}).items():
        parts.append(f'<h2 id="{escape(name)}">{escape(name)}</h2><p>{escape(schema.get("description", ""))}</p>')
        parts.append(_fields(schema))
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    return (
        f'<!doctype html><html lang="en"><head>{head}<style>{_STYLE}</style></head><body>{"".join(parts)}</body></html>'
    )


def _operation(operation: Mapping[str, Any]) -> str:
    parts = [f"<p><b>{escape(operation.get('summary', ''))}.</b> {escape(operation.get('description', ''))}</p>"]
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        about = f"<p>{escape(content['schema'].get('description', ''))}</p>"
        parts.append(f"<h3>Body as <code>{escape(kind)}</code></h3>{about}{_fields(content['schema'])}")
    answers = []
    for status, answer in operation["responses"].items():
        bodies = [
            f"<code>{escape(kind)}</code>: {_kind(content.get('schema', {}))}"
            f" {escape(content.get('schema', {}).get('description', ''))}"
            for kind, content in answer.get("content", {}).items()
        ]
        answers.append((f"<code>{escape(status)}</code>", escape(answer["description"]), "<br>".join(bodies)))
    return "".join(parts) + "<h3>Answers</h3>" + _table(("status", "meaning", "body"), answers)


def _fields(schema: Mapping[str, Any]) -> str:
    needed = schema.get("required", ())
    rows = [
        (
            f"<code>{escape(name)}</code>{' (needed)' if name in needed else ''}",
            _kind(field),
            escape(field.get("description", "")),
        )
        for name, field in schema.get("properties", {}).items()
    ]
    return _table(("field", "kind", "meaning"), rows)


def _kind(schema: Mapping[str, Any]) -> str:
    """A schema in a few words; what has a name of its own is linked."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(map(_kind, schema["anyOf"]))
    values = schema.get("enum") or ([schema["const"]] if "const" in schema else [])
    if values:
        return " | ".join(f"<code>{escape(str(value))}</code>" for value in values)
    if schema.get("type") == "array":
        return f"list of {_kind(schema['items'])}" if "items" in schema else "list"
    limits = {"maxLength": "at most {} characters", "minimum": "at least {}", "maximum": "at most {}"}
    said = [text.format(schema[key]) for key, text in limits.items() if key in schema]
    return ", ".join([escape(str(schema.get("type", "any"))), *said])


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of cells that are HTML already."""
    lines = ["".join(f"<td>{cell}</td>" for cell in row) for row in rows]
    if not lines:
        return ""
    names = "".join(f"<th>{name}</th>" for name in head)
    return f"<div><table><tr>{names}</tr>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table></div>"
