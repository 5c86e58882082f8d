"""The page at /docs reads offline, and leaves out nothing that the description says."""

import re
from html import escape

import pytest

pytest.importorskip("ray.serve")

from serve.api.reference import reference_page  # noqa: E402
from serve.ingress.deployment import api  # noqa: E402


def test_the_page_names_every_path_field_and_status_and_loads_nothing() -> None:
    description = api.openapi()
    page = reference_page(description)
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            assert f"{method.upper()} {path}<" in page
            assert all(f"<code>{status}</code>" in page for status in operation["responses"])
            for content in operation.get("requestBody", {}).get("content", {}).values():
                assert all(f"<code>{name}</code>" in page for name in content["schema"].get("properties", ()))
                assert escape(content["schema"].get("description", "")) in page
            for answer in operation["responses"].values():
                for kind, content in answer.get("content", {}).items():
                    assert kind in page and escape(content["schema"].get("description", "")) in page
    for schema in description["components"]["schemas"].values():
        assert all(f"<code>{name}</code>" in page for name in schema["properties"])
    assert "<script" not in page and " src=" not in page and "://" not in page
    anchors = set(re.findall(r'id="([^"]+)"', page))
    links = re.findall(r'href="([^"]+)"', page)
    assert links and all(link == "openapi.json" or link.removeprefix("#") in anchors for link in links)


def test_what_the_description_says_is_text_and_never_markup() -> None:
    operation = {"summary": "<b>", "responses": {"200": {"description": "<i>&"}}}
    page = reference_page({"info": {"title": "<x>", "version": "1"}, "paths": {"/<p>": {"get": operation}}})
    assert not re.search("<x>|<p>/|/<p>|<b><b>|<i>", page)
    assert "&lt;i&gt;&amp;" in page
