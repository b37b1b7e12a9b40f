"""The page that a person labels on: it shows every frame, and runs nothing but its own script."""

from __future__ import annotations

import html.parser
import json
import shutil
import subprocess

import pytest

from tests.fakes.inbox import (
    hand_in,
    jpeg,
    list_into,
    read_csv,
)

VOID = {"meta", "img", "input", "link", "br"}


class Page(html.parser.HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop()[0] == tag

    def handle_data(self, data):
        tag, attributes = self.open[-1] if self.open else ("", {})
        if tag == "script":
            self.scripts[attributes.get("id") or ""] = data
        elif tag != "style":
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


NASTY = (
    "\"quoted\" & 'so'",
    "<script>alert(1)</script>",
    "</script>",
    "Ünïcødé 猫 🐈",
    "</template>",
    "a<!--",
)


def nasty_page(store, folder) -> Page:
    hand_in(store, "cam1", "a.jpg", jpeg(1), label=NASTY[1], why=NASTY[0], at=NASTY[2], release=NASTY[5])
    hand_in(store, "cam1", "b.jpg", jpeg(2), label=NASTY[0])
    hand_in(store, "cam1", "c.jpg", jpeg(3), label="unknown <b>")
    list_into(store, folder, labels=NASTY)
    return Page((folder / "index.html").read_text(encoding="utf-8"))


def test_the_page_shows_each_picture_with_every_class_to_choose(store, tmp_path):
    page = nasty_page(store, tmp_path)
    assert [one["value"] for one in page.all("option")] == ["", *NASTY, "", "-"]
    assert [one["src"] for one in page.all("img")] == [row["picture"] for row in read_csv(tmp_path)]
    assert len(page.all("select")) == 3
    assert [one.get("data-suggested") for one in page.all("article")] == [NASTY[1], NASTY[0], None]
    assert "41 % sure" in page.text
    assert "unknown <b>" in page.text
    assert "alert" not in "".join(text for name, text in page.scripts.items() if name != "listing")
    data = json.loads(page.scripts["listing"])
    assert tuple(data["labels"]) == NASTY
    assert data["rows"] == [list(row.values()) for row in read_csv(tmp_path)]
    assert data["header"][data["column"]] == "label"


def test_the_page_loads_and_runs_nothing_but_its_own(store, tmp_path):
    page = nasty_page(store, tmp_path)
    assert len(page.all("script")) == 3
    [policy] = [one["content"] for one in page.all("meta") if one.get("http-equiv")]
    for script in page.all("script"):
        assert script.get("type") == "application/json" or f"'nonce-{script['nonce']}'" in str(policy)
        assert "src" not in script
    assert not {name for _, attributes in page.elements for name in attributes if name.startswith("on")}
    assert not any("//" in str(one.get("src")) for one in page.all("img"))
    assert not page.all("link")


def test_what_the_page_saves_is_the_file_that_the_pipeline_writes(store, tmp_path):
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node here to run the page's script")
    page = nasty_page(store, tmp_path)
    program = (
        page.scripts["file"]
        + f"const listing = {page.scripts['listing']};"
        + "process.stdout.write(toCsv(listing.header, listing.rows));"
    )
    saved = subprocess.run([node, "-e", program], capture_output=True, check=True).stdout
    assert saved == (tmp_path / "labels.csv").read_bytes()
