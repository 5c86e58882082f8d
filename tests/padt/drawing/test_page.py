"""Reports show what strangers' files say: it must be shown as text, whatever it is, and need nothing beside itself."""

import base64
import hashlib
import html
import re
from html.parser import HTMLParser

from PIL import Image

from padt.drawing.charts import Line, bar, line_chart, reliability
from padt.drawing.page import Markup, Number, PageSection, element, figure, html_page, paragraph, picture, table

EVIL = "<script>alert(1)</script>'\" onload=x </style></title>\ud800"


def evil_page() -> str:
    image = picture(Image.new("RGB", (40, 20), "red"), EVIL)
    parts = (
        paragraph(EVIL, class_="alarm"),
        table([EVIL, "n"], [[EVIL, 1200], [EVIL, 7]], EVIL),
        figure([image], EVIL, 3),
        reliability([(0.2, 0.4, 3)], EVIL),
        line_chart([Line(EVIL, ((0, 0.0), (1, 1.0))), Line("b", ((0, 1.0),))], EVIL, EVIL, EVIL),
        bar(0.5, (0.4, 0.6)),
    )
    return html_page(EVIL, [EVIL], [PageSection(EVIL, parts)] * 3).decode()


class Reader(HTMLParser):
    """Tags, attributes and text as a browser would see them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in ("img", "meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_no_text_becomes_an_element_or_an_attribute():
    page = evil_page()
    read = Reader(page)
    assert not read.open and not read.tags & {"script", "iframe", "object", "form", "link", "base"}
    names = {name for name, _ in read.attributes}
    assert not any(name.startswith("on") for name in names) and "style" not in names
    assert html.escape(EVIL[:-1]) in page


def test_a_page_loads_nothing_and_its_policy_allows_its_own_style_alone():
    page = evil_page()
    read = Reader(page)
    for name, value in read.attributes:
        if name == "src":
            assert value and value.startswith("data:image/jpeg;base64,")
        if name == "href":
            assert value and value.startswith("#")
    assert not re.search(r"url\s*\(|@import|https?://", page)
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    (policy,) = [value for name, value in read.attributes if name == "content" and "default-src" in (value or "")]
    assert policy and "default-src 'none'" in policy and f"'sha256-{digest}'" in policy and "unsafe" not in policy


def test_links_lead_to_sections_though_they_share_a_title():
    page = html_page("x", [], [PageSection(title, ()) for title in ("A b", "a B!", "A b 2", "…")]).decode()
    links = re.findall(r'href="#([^"]*)"', page)
    anchors = re.findall(r'id="([^"]*)"', page)
    assert len(set(anchors)) == len(anchors) and set(links) == set(anchors)


def test_numbers_stand_right_and_short_cells_keep_their_words():
    made = table(["name", "n", "share"], [["a" * 30, 1200, Number("+0.1")], ["b", None, Number("0.2")]], "x")
    assert 'class="n">1,200<' in made and 'class="n">+0.1<' in made and f'class="long">{"a" * 30}<' in made
    assert '<th scope="row">b<' in made and 'tabindex="0"' in made and 'role="region"' in made


def test_markup_stays_and_absent_parts_go():
    assert element("p", Markup("<b>x</b>"), None, "<", 1234, 0.5, class_=None) == "<p><b>x</b>&lt;1,2340.500</p>"
    assert element("line", x1=0.5, aria_hidden="true") == '<line x1="0.5" aria-hidden="true"></line>'


def test_the_same_content_gives_the_same_bytes_and_wide_pictures_shrink():
    assert evil_page() == evil_page()
    assert 'width="100" height="50"' in picture(Image.new("RGB", (400, 200)), "x", width=100)


def test_charts_show_values_where_they_belong():
    assert 'width="50"' in bar(0.5) and 'width="100"' in bar(7) and 'x1="40" x2="60"' in bar(0.5, (0.4, 0.6))
    drawn = reliability([(0.5, 1.0, 4), (1.0, 0.0, 1)], "x")
    assert 'cx="206" cy="10" r="10"' in drawn and 'cx="366" cy="250" r="6.2"' in drawn
    flat = line_chart([Line("one", ((1, 0.5),))], "k", "recall", "x", (0.0, 1.0))
    assert 'cx="46" cy="130"' in flat and "nan" not in flat
    # Whole places have whole ticks, and a legend has its own lines above.
    two = [Line("one", ((1, 0.5), (3, 0.7))), Line("two", ((1, 0.1), (3, 0.2)))]
    drawn = line_chart(two, "k", "share", "x", (0.0, 1.0))
    assert re.findall(r'y="301"[^>]*>([^<]*)<', drawn) == ["1", "2", "3"] and ">one<" in drawn and ">two<" in drawn
