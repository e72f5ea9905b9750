"""The file: it loads nothing, its policy holds it to that, and no name gets out of where it stands."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from page.test_model import FINDING, shown
from tell.samples import HOSTILE
from written import make_info, make_record

from lightning_gradwatch.page.html import html_page
from lightning_gradwatch.page.model import page_model

NAMES = [
    *HOSTILE,
    '"><img src=x onerror=alert(1)>',
    "</script><script>alert(1)</script>",
    "x" * 500,
    "<!--",
    "' onload='x",
]


class Parsed(HTMLParser):
    """Elements with their attributes, and the text of each kind."""

    CDATA_CONTENT_ELEMENTS = ("script", "style")

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts = [], {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags:
            self.texts.setdefault(self.tags[-1][0], []).append(data)


def page_with(name):
    info = make_info()
    info = replace(info, layers=(replace(info.layers[0], name=name), *info.layers[1:]))
    finding = replace(FINDING, layers=(name,), message=name, cause=name)
    return html_page(page_model([shown([make_record(info, 0)], info, findings=(finding,), name=name)]))


@pytest.mark.parametrize("name", NAMES)
def test_a_name_adds_no_element(name):
    plain, odd = Parsed(page_with("plain")), Parsed(page_with(name))
    assert [tag for tag, _ in odd.tags] == [tag for tag, _ in plain.tags]
    assert not any(attribute.startswith("on") for _, attributes in odd.tags for attribute in attributes)


def test_what_runs_is_what_the_policy_names():
    """By its hash: another script, style or address is refused by the browser."""
    text = page_with("</script>")
    policy = next(given["content"] for tag, given in Parsed(text).tags if given.get("http-equiv"))
    (script,) = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    (style,) = re.findall(r"<style>(.*?)</style>", text, flags=re.DOTALL)
    rules = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    for name, content in (("script-src", script), ("style-src", style)):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[name] == f"'sha256-{digest}'"
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert "unsafe" not in policy


def test_nothing_in_it_is_elsewhere():
    text = page_with("net.0")
    for tag, given in Parsed(text).tags:
        for attribute in ("src", "href"):
            assert not given.get(attribute, "").startswith(("http", "//", "/")), (tag, given)
    assert "http://" not in text
    assert "https://" not in text
    assert not re.search(r"\b(fetch|XMLHttpRequest|WebSocket|sendBeacon|importScripts|eval)\b\s*\(", text)
    assert "innerHTML" not in text


def test_without_scripts_there_is_a_table():
    info = make_info()
    text = html_page(page_model([shown([make_record(info, 0)], info, findings=(FINDING,))]))
    (table,) = re.findall(r"<noscript>(.*?)</noscript>", text, flags=re.DOTALL)
    told = html.unescape(re.sub(r"<[^>]+>", "\n", table))
    for part in ("GW101 vanishing-gradient", "error", "137", "Replace it.", "net.4", "not healthy"):
        assert part in told


def test_the_data_can_be_read_back():
    model = page_model([shown([make_record(make_info(), 0)], make_info())])
    (data,) = re.findall(r'<script id="gradwatch-data"[^>]*>(.*?)</script>', html_page(model), flags=re.DOTALL)
    assert json.loads(data) == model
    assert data.isascii()


@pytest.mark.parametrize("name", NAMES)
def test_no_sign_of_html_is_in_the_data(name):
    """Nor one that a CI server reads commands by: whatever ends an element for some parser, none begins."""
    (data,) = re.findall(r'<script id="gradwatch-data"[^>]*>(.*?)</script>', page_with(name), flags=re.DOTALL)
    assert not set("<>&#\n") & set(data)
