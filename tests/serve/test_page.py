"""The page at / in a real browser, on the real routes with an engine whose answers are written here."""

import asyncio
import io
import json
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("ray.serve")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright (extra dev) is not installed")

from padt.data import rle  # noqa: E402
from padt.inference.events import ObjectFound, TextPiece, Times  # noqa: E402
from padt.inference.results import Frame, PredictedObject, Prediction  # noqa: E402
from serve.messages import Job, Outcome, StreamItem  # noqa: E402
from serve.settings import ServerArgs  # noqa: E402
from tests.serve.fake_engine import Answers, words_of  # noqa: E402
from tests.serve.in_process import listening, served  # noqa: E402
from tests.serve.test_http_predict import settled  # noqa: E402

EVIL = "<img src=x onerror=alert(1)>"
KEY = "0123456789abcdef"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


class Scripted(Answers):
    """Names two things in every picture, word by word; 'evil', 'emoji', 'breaks' and 'slowly' do what they say."""

    async def _stream(self, job: Job) -> AsyncIterator[list[StreamItem]]:
        self.jobs.append(job)
        words = words_of(job.request)
        names = (EVIL, "dog") if "evil" in words else ("red cup", "dog")
        width, height = job.images[0].size
        mask = np.zeros((height, width), bool)
        mask[height // 4 : height // 2, width // 8 : width // 2] = True
        boxes = ((width / 8, height / 4, width / 2, height / 2), (width * 0.6, height * 0.5, width * 1.0, height * 1.0))
        found = [
            PredictedObject(name, score, box, mask, patches, (0, 1), 0.9, True)
            for name, score, box, mask, patches in zip(
                names, (0.9, 0.4), boxes, (rle.encode(mask), None), ((0, 1), (5,)), strict=True
            )
        ]
        yield [TextPiece("👋 " if "emoji" in words else ""), TextPiece("A "), TextPiece(names[0]), TextPiece(" (")]
        if "slowly" in words:
            await asyncio.Event().wait()
        yield [ObjectFound(0, found[0]), TextPiece(") and a dog (")]
        if "breaks" in words:
            raise RuntimeError("the engine's own secret")
        yield [ObjectFound(1, found[1]), TextPiece(").")]
        text = f"A {names[0]} (<|VRT_0|><|VRT_1|>) and a dog (<|VRT_5|>)."
        prediction = Prediction(text, tuple(found), (Frame(width, height, (2, 3)),))
        times = Times(queued=0.001, prefill=0.002, decode=0.003, objects=0.004)
        yield [Outcome(prediction.to_dict(), "stop", times=times, version="3", fingerprint="f00")]


def picture(size: tuple[int, int] = (240, 160), kind: str = "PNG", **options: Any) -> dict[str, Any]:
    """A file as a browser's chooser hands it over."""
    written = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(written, kind, **options)
    return {"name": f"photo.{kind.lower()}", "mimeType": f"image/{kind.lower()}", "buffer": written.getvalue()}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: install Debian's package chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def engine() -> Scripted:
    return Scripted()


@pytest.fixture(scope="module")
def url(engine: Scripted) -> Iterator[str]:
    with listening(served(engine, ServerArgs())) as url:
        yield url


@contextmanager
def opened(browser: Any, url: str, allowed: str = "", **options: Any) -> Iterator[Any]:
    """The page in a new window. Nothing may stand in its console, bar lines that hold ``allowed``."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
    page = context.new_page()
    page.set_default_timeout(90_000)
    complaints: list[str] = []
    page.on("console", lambda line: complaints.append(line.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: (complaints.append("a dialog"), dialog.dismiss()))
    page.goto(url)
    yield page
    context.close()
    assert [line for line in complaints if not allowed or allowed not in line] == []


@pytest.fixture
def page(browser: Any, url: str) -> Iterator[Any]:
    with opened(browser, url) as page:
        yield page


def asked(page: Any, words: str = "dog, red cup", task: str = "detect", file: Any = None) -> Any:
    """Choose a picture, if there is none, and ask; returns when the answer has ended."""
    if not page.locator("#frame").is_visible():
        page.set_input_files("#file", file or picture())
    page.check(f"[name=task][value={task}]")
    if task != "caption":
        page.fill("#words", words)
    # A question that comes while the picture is still being read waits for it.
    page.click("#ask")
    page.wait_for_selector("#answer[aria-busy=false]")
    return page


def lit(page: Any) -> dict[str, list[str]]:
    """Numbers of the lit objects on the picture, in the text and in the rows."""
    script = "where => [...document.querySelectorAll(`${where} .lit`)].map(e => e.dataset.objects)"
    return {where: page.evaluate(script, where) for where in ("#overlay", "#text", "#rows")}


def test_words_are_linked_to_box_mask_and_row_and_back(page: Any) -> None:
    asked(page)
    assert page.inner_text("#text") == "A red cup () and a dog ()."
    assert page.locator(".mention").all_inner_texts() == ["red cup", "dog"]
    assert page.locator("#text canvas.piece").count() == 2
    everywhere = {"#overlay": ["1"], "#text": ["1", "1"], "#rows": ["1"]}
    for place in (
        ".mention >> nth=1",
        "#rows button >> nth=1",
        ".tag >> text=dog",
        "#overlay .box:not(.halo) >> nth=0",
    ):
        page.mouse.move(2, 2)
        assert lit(page)["#rows"] == []
        page.hover(place, force=place.startswith("#overlay"))
        # The dog's box is drawn first: it is the larger.
        assert lit(page) == everywhere, place
    assert page.locator(".object.lit .box:not(.halo)").is_visible()
    # All but the object is darkened, so that it stands out.
    playwright.expect(page.locator(".object.lit .shade")).to_have_css("opacity", "1")
    colour = "e => getComputedStyle(e).getPropertyValue('--colour')"
    assert (
        len({page.eval_on_selector(f"{where} [data-objects='1']", colour) for where in ("#text", "#rows", "#tags")})
        == 1
    )


def test_the_first_words_show_while_the_rest_is_still_to_come_and_cancel_ends_it(page: Any, engine: Scripted) -> None:
    before = engine.cancelled
    page.set_input_files("#file", picture())
    page.fill("#words", "slowly")
    page.click("#ask")
    playwright.expect(page.locator("#text")).to_have_text("A red cup (")
    assert page.get_attribute("#answer", "aria-busy") == "true"
    assert page.is_hidden("#ask")
    page.click("#cancel")
    page.wait_for_selector("#answer[aria-busy=false]")
    assert page.inner_text("#problem") == "Cancelled." and page.is_visible("#ask")
    assert page.inner_text("#text") == "A red cup ("
    assert settled(lambda: engine.cancelled == before + 1)


def test_places_in_the_text_count_characters_not_utf16_units(page: Any) -> None:
    asked(page, "emoji", "chat")
    assert page.inner_text("#text") == "👋 A red cup () and a dog ()."
    assert page.locator(".mention").all_inner_texts() == ["red cup", "dog"]


def test_what_a_model_or_a_person_writes_is_never_markup(page: Any) -> None:
    asked(page, f"evil {EVIL}", "refer")
    assert page.locator(".mention").first.inner_text() == EVIL
    assert EVIL in page.inner_text("#rows") and EVIL in page.inner_text("#asked")
    asked(page, "again", "refer")
    assert EVIL in page.inner_text("#past")
    assert page.locator("img[src=x]").count() == 0


def test_threshold_and_switches_decide_what_is_drawn(page: Any) -> None:
    asked(page)
    page.fill("#threshold", "0.5")
    assert page.locator("#rows button:visible").count() == page.locator("#overlay .object:visible").count() == 1
    assert "1 below" in page.inner_text("#found")
    assert page.inner_text("#text") == "A red cup () and a dog ()."
    page.fill("#threshold", "0")
    assert page.locator("#rows button:visible").count() == 2
    first = page.locator("#overlay [data-objects='0']")
    for name, part in (("boxes", ".box:not(.halo)"), ("masks", ".mask:not(.halo)"), ("patches", ".cells")):
        for on in (True, False):
            page.set_checked(f"#layers [value={name}]", on, force=True)
            page.mouse.move(2, 2)
            assert first.locator(part).is_visible() == on, name


def test_times_raw_answer_and_history(page: Any, engine: Scripted) -> None:
    asked(page)
    times = page.inner_text("#times")
    assert all(name in times for name in ("First word", "First object", "Whole answer", "Server: "))
    page.click("#raw summary")
    page.wait_for_selector("#json:not(:empty)")
    assert json.loads(page.inner_text("#json"))["version"] == "3"
    assert page.is_hidden("#history")
    asked(page, "the cup", "refer")
    asked(page, task="caption")
    assert [line.strip() for line in page.locator("#past .asked").all_inner_texts()] == [
        "Caption",
        "Refer the cup",
        "Detect dog, red cup",
    ]
    assert "the cup" in words_of(engine.jobs[-2].request)
    page.click("#past button >> nth=2")
    assert page.inner_text("#asked") == "Detect dog, red cup"
    page.set_input_files("#file", picture((200, 200)))
    page.wait_for_selector("#answer", state="hidden")
    assert page.is_hidden("#history") and page.locator("#overlay *").count() == 0


def test_a_sample_is_one_click_away(page: Any) -> None:
    page.click("[data-sample='two-shapes.png']")
    page.wait_for_selector("#frame:visible")
    asked(page)
    assert page.locator("#rows button").count() == 2


def test_everything_is_reached_by_keyboard_and_focus_is_seen(page: Any) -> None:
    page.focus("[data-sample='one-shape.png']")
    page.keyboard.press("Enter")
    page.wait_for_selector("#frame:visible")
    playwright.expect(page.locator("#words")).to_be_focused()
    page.keyboard.type("dog")
    page.keyboard.press("Enter")
    page.wait_for_selector("#answer[aria-busy=false]")
    seen, unseen = [], []
    for _ in range(40):
        page.keyboard.press("Tab")
        name = page.evaluate(
            "(e => [e.id || e.value || e.classList[0] || e.tagName, e.dataset.objects].join(' '))"
            "(document.activeElement)"
        )
        if name in seen[:1]:
            break
        seen.append(name)
        # The mark may stand on what stands for a hidden control: its label or the text beside it.
        marked = page.evaluate(
            "(e => [e, e.nextElementSibling, e.closest('label'), document.querySelector('#another')]"
            ".some(one => one && getComputedStyle(one).outlineStyle === 'solid'))(document.activeElement)"
        )
        if not marked and name.strip() not in ("BODY", "HTML"):
            unseen.append(name)
    assert unseen == []
    reached = " ".join(seen)
    wanted = ("ask", "mention 0", "mention 1", "masks", "patches", "threshold", "to-coco", "to-png", "file", "detect")
    assert [name for name in wanted if name not in reached] == []
    page.focus(".mention >> nth=1")
    assert lit(page)["#overlay"] == ["1"]
    page.keyboard.press("Enter")
    page.evaluate("document.activeElement.blur()")
    page.mouse.move(2, 2)
    assert lit(page)["#overlay"] == ["1"], "a pinned object stays lit"
    page.keyboard.press("Escape")
    assert lit(page)["#overlay"] == []


def test_a_screen_reader_hears_the_answer_once_and_knows_every_control(page: Any) -> None:
    asked(page)
    assert page.inner_text("#status") == "Answer: A red cup () and a dog (). 2 objects found."
    assert page.get_attribute("#status", "aria-live") == "polite"
    nameless = page.evaluate(
        "[...document.querySelectorAll('input, textarea, button, [role=button], summary')]"
        ".filter(e => !(e.labels?.length || e.ariaLabel || e.textContent.trim() || e.querySelector('img[alt]')))"
        ".map(e => e.outerHTML)"
    )
    assert nameless == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_both_schemes(browser: Any, url: str, scheme: str) -> None:
    script = """selector => {
      const light = text => { const [r, g, b] = text.match(/[\\d.]+/g).map(Number).map(v => v / 255)
        .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b };
      let behind = document.querySelector(selector);
      const ink = light(getComputedStyle(behind).color);
      const clear = e => /^rgba\\(.*, 0\\)|^color\\(/.test(getComputedStyle(e).backgroundColor);
      while (clear(behind)) behind = behind.parentElement;
      const paper = light(getComputedStyle(behind).backgroundColor);
      return (Math.max(ink, paper) + .05) / (Math.min(ink, paper) + .05);
    }"""
    with opened(browser, url, color_scheme=scheme) as page:
        asked(page)
        for selector in ("h1", ".hint", "#text", ".place", "dt", "#ask", "#found", ".tag", ".tagline", "#words"):
            assert page.evaluate(script, selector) >= 4.5, selector
        page.evaluate("document.querySelector('#problem').textContent = 'x'")
        assert page.evaluate(script, "#problem") >= 4.5
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(19, 21, 24)"
        assert dark == (scheme == "dark")


def test_a_phone_scrolls_down_only(browser: Any, url: str) -> None:
    phone = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
    with opened(browser, url, **phone) as page:
        wide = "document.documentElement.scrollWidth"
        assert page.evaluate(wide) <= 360
        asked(page, "evil " + "long" * 60, "chat")
        asked(page)
        page.click("#raw summary")
        page.click("#key-box summary")
        assert page.evaluate(wide) <= 360
        page.click("#key-box summary")
        page.tap(".mention >> nth=1")
        assert lit(page)["#overlay"] == ["1"]


def test_nothing_moves_for_those_who_asked_for_stillness(browser: Any, url: str) -> None:
    with opened(browser, url, reduced_motion="reduce") as page:
        asked(page)
        assert page.evaluate("document.getAnimations().length") == 0
        moves = "[...document.querySelectorAll('*')].filter(e => getComputedStyle(e).animationName !== 'none').length"
        assert page.evaluate(moves) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [("breaks", "The server failed"), ("x" * 9000, "prompt")],
)
def test_what_the_server_refuses_is_said_in_its_words(browser: Any, url: str, words: str, said: str) -> None:
    with opened(browser, url, allowed="Failed to load resource") as page:
        asked(page, words, "chat")
        assert said in page.inner_text("#problem")
        assert "secret" not in page.inner_text("body")
        asked(page)
        assert page.inner_text("#problem") == "", "the next question starts afresh"


def test_a_server_that_is_gone_is_said_so(browser: Any, engine: Scripted) -> None:
    with listening(served(engine, ServerArgs())) as url, opened(browser, url, allowed="Failed to load") as page:
        page.set_input_files("#file", picture())
        page.context.set_offline(True)
        asked(page)
        assert page.inner_text("#problem") == "The server cannot be reached. Is it running?"


def test_a_key_is_asked_for_and_kept_for_the_tab(browser: Any, engine: Scripted) -> None:
    app = served(engine, ServerArgs(), f"ana:{KEY}")
    with listening(app) as url, opened(browser, url, allowed="401") as page:
        asked(page)
        assert "key" in page.inner_text("#problem") and page.evaluate("document.activeElement.id") == "key"
        page.keyboard.type(KEY)
        page.keyboard.press("Enter")
        page.click("#ask")
        page.wait_for_selector("#rows button")
        page.reload()
        asked(page)
        assert page.inner_text("#problem") == "" and page.locator("#rows button").count() == 2
        assert page.evaluate("localStorage.length") == 0


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ({"name": "a.pdf", "mimeType": "application/pdf", "buffer": b"%PDF"}, "a.pdf is not a picture"),
        ({"name": "a.heic", "mimeType": "image/heic", "buffer": b"\0\0\0\x18ftypheic"}, "HEIC"),
        ({"name": "a.jpg", "mimeType": "image/jpeg", "buffer": b"\xff\xd8\xff"}, "cannot be read as a picture"),
        ({"name": "empty.png", "mimeType": "image/png", "buffer": b""}, "cannot be read as a picture"),
    ],
)
def test_a_file_that_is_no_picture_is_named(page: Any, file: dict[str, Any], said: str) -> None:
    page.set_input_files("#file", file)
    page.wait_for_selector("#problem:not(:empty)")
    assert said in page.inner_text("#problem") and page.is_visible("#empty")


@pytest.mark.parametrize("how", ["drop", "paste"])
def test_pictures_are_dropped_and_pasted(page: Any, how: str) -> None:
    script = """([how, bytes, type]) => {
      const data = new DataTransfer();
      if (bytes) data.items.add(new File([new Uint8Array(bytes)], "photo", { type }));
      else data.setData("text/plain", "https://example.org/a.png");
      const event = how === "drop" ? new DragEvent("drop", { dataTransfer: data, bubbles: true })
        : new ClipboardEvent("paste", { clipboardData: data, bubbles: true });
      document.querySelector("#drop").dispatchEvent(event);
    }"""
    page.evaluate(script, [how, None, ""])
    assert "no picture" in page.inner_text("#problem")
    page.evaluate(script, [how, list(picture()["buffer"]), "image/png"])
    page.wait_for_selector("#frame:visible")
    assert page.inner_text("#problem") == ""


def test_large_pictures_travel_scaled_and_come_back_in_their_own_pixels(
    page: Any, engine: Scripted, tmp_path: Path
) -> None:
    # Lying on its side in the file, as phones write them: 2400 wide and 4800 high for people.
    exif = Image.Exif()
    exif[0x0112] = 6
    asked(page, file=picture((4800, 2400), "JPEG", exif=exif))
    assert engine.jobs[-1].images[0].size == (1000, 2000)
    assert "300, 1200 to 1200, 2400" in page.inner_text("#rows")
    with page.expect_download() as download:
        page.click("#to-coco")
    saved = tmp_path / "coco.json"
    download.value.save_as(saved)
    pycoco = pytest.importorskip("pycocotools.coco")
    coco = pycoco.COCO(str(saved))
    assert coco.loadImgs(1)[0]["width"] == 2400 and coco.loadImgs(1)[0]["height"] == 4800
    first, second = coco.loadAnns(coco.getAnnIds())
    assert first["bbox"] == [300, 1200, 900, 1200] and first["score"] == 0.9
    mask = coco.annToMask(first)
    assert mask.shape == (4800, 2400) and mask.sum() == first["area"]
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    assert abs(rows[0] - 1200) < 4 and abs(rows[-1] - 2399) < 4 and abs(columns[0] - 300) < 4
    assert "segmentation" not in second
    assert {category["name"] for category in coco.loadCats(coco.getCatIds())} == {"red cup", "dog"}


def test_the_picture_is_saved_as_it_is_drawn(page: Any, tmp_path: Path) -> None:
    asked(page)
    page.fill("#threshold", "0.5")
    with page.expect_download() as download:
        page.click("#to-png")
    assert download.value.suggested_filename == "photo.padt.png"
    download.value.save_as(tmp_path / "drawn.png")
    drawn = np.asarray(Image.open(tmp_path / "drawn.png").convert("RGB")).astype(int)
    grey = np.ptp(drawn, axis=2) < 8
    height, width = grey.shape
    assert width == 1120
    assert not grey[height // 3, width // 4], "inside the mask"
    assert grey[height * 3 // 4 :, width * 2 // 3 :].all(), "the dog is below the score"


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (40, 64)])
def test_masks_are_read_written_and_traced_as_pycocotools_does(page: Any, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    height, width = size
    for share in (0.0, 0.1, 0.5, 0.9, 1.0):
        mask = rng.random(size) < share
        coded = rle.encode(mask)
        script = """async ([rle, width, height]) => {
          const masks = await import("/masks.js");
          const bits = masks.resample(rle, width, height);
          const path = new Path2D(masks.outlineOf(rle).path);
          const pen = document.createElement("canvas").getContext("2d");
          const inside = [];
          for (let x = 0; x < width; x++) for (let y = 0; y < height; y++)
            inside.push(+pen.isPointInPath(path, x + .5, y + .5, "evenodd"));
          return [[...bits], masks.encode(bits, width, height), masks.areaOf(rle), inside];
        }"""
        bits, again, area, inside = page.evaluate(script, [coded, width, height])
        assert bits == mask.T.astype(int).ravel().tolist()
        assert again == coded and area == mask.sum()
        # Outlines round the corners off, but every pixel's middle stays on its side.
        assert inside == bits
