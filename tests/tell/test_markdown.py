"""The Markdown report: an overview, then what matters; names show as they are and do nothing."""

from __future__ import annotations

import re

import markdown
import pytest
from tell.samples import ALL, COMPARED, FAILED, HEALTHY, HOSTILE, hostile, steers

from lightning_gradwatch.tell.markdown_report import markdown_report


def html(*verdicts):
    return markdown.markdown(markdown_report(verdicts), extensions=["tables"])


def test_an_overview_has_a_row_a_run():
    page = html(*ALL)
    assert page.count("<tr>") == 1 + len(ALL)
    assert "✅ healthy" in page
    assert "❌ failed" in page
    assert "⚠️ can't judge" in page.replace("&#39;", "'")


def test_a_finding_is_a_section():
    text = markdown_report([FAILED])
    assert "#### GW101 vanishing&#45;gradient: error since step 16\n\n- **layers** net.0, net.2\n" in text
    assert "- **remedy** Replace them.\n" in text
    assert "- not judged: GW202 saturated&#45;units: not yet" in text
    assert "- ignored: GW2 at head.1: a small head" in text
    assert "cut off" in text


def test_a_healthy_run_has_no_section():
    assert "###" not in markdown_report([HEALTHY])


def test_what_is_known_and_what_got_worse_is_told_apart():
    text = markdown_report([COMPARED])
    assert "error since step 16, known from the baseline" in text
    assert "#### worse than logs/good" in text


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_text(name):
    text = markdown_report([hostile(name)])
    assert not steers(text)
    page = markdown.markdown(text, extensions=["tables"])
    tags = {tag.lower() for tag in re.findall(r"<\s*/?\s*([a-zA-Z0-9]+)", page)}
    assert tags <= {"h2", "h3", "h4", "table", "thead", "tbody", "tr", "th", "td", "ul", "li", "strong", "p"}
    assert page.count("<tr>") == 2
    assert page.count("<td>") == 4
