"""The page's modules become one script, or are refused."""

from __future__ import annotations

import pytest

from lightning_gradwatch.page.bundle import bundle, bundle_sources


def test_modules_come_once_and_before_those_that_import_them():
    sources = {
        "app.js": 'import { one } from "./views/one.js";\nimport { two } from "./two.js";\none(two);',
        "views/one.js": 'import { two } from "../two.js";\nexport function one() { return two; }',
        "two.js": "export const two = 2;",
    }
    told = bundle_sources(sources, "app.js")
    assert told.count("const two = 2") == 1
    assert told.index("const two = 2") < told.index("function one") < told.index("one(two)")


def test_names_of_two_modules_dont_meet():
    """Each is a function of its own: a helper of the same name in both is no error."""
    sources = {
        "a.js": 'import { b } from "./b.js";\nconst helper = 1;\nb(helper);',
        "b.js": "const helper = 2;\nexport const b = (x) => x + helper;",
    }
    assert bundle_sources(sources, "a.js").count("const helper") == 2


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ('import x from "./b.js";', "isn't read"),
        ('import { x as y } from "./b.js";', "only plain names"),
        ('import "./b.js";', "isn't read"),
        ("export default 1;", "isn't read"),
        ("export { x };", "isn't read"),
        ("export let x = 1;", "isn't read"),
        ('import { x } from "https://example.org/x.js";', "isn't read"),
        ('import { x } from "./gone.js";', "no such module"),
        ('import { x } from "./a.js";', "circle"),
    ],
)
def test_what_it_cant_read_is_refused(source, said):
    with pytest.raises(ValueError, match=said):
        bundle_sources({"a.js": source, "b.js": "export const x = 1;"}, "a.js")


def test_the_page_itself_can_be_bundled():
    assert "function mount(" in bundle("host_file.js")
