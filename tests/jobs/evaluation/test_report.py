"""The report tells why answers are wrong: true figures, the same bytes for the same answers, text that stays text."""

import copy
import html
import random
import re
import shutil
from collections import Counter
from html.parser import HTMLParser

import pytest

from jobs.evaluation.evaluate import answer
from jobs.evaluation.report.analysis import analyse
from jobs.evaluation.report.publish import ReportOptions
from jobs.evaluation.report.selection import Selection
from jobs.evaluation.samples import open_eval_set
from jobs.evaluation.score import run_score
from jobs.evaluation.store import to_parquet
from tests.jobs.evaluation.oracle import Oracle
from tests.pipelines.mini_set import scene_row, write_mini_set, write_set

pytest.importorskip("faster_coco_eval")

EVIL = "<script>alert(1)</script>'\" onload=x"
QUICK = ReportOptions(pictures=0)


@pytest.fixture(scope="module")
def mini(tmp_path_factory) -> str:
    return write_mini_set(tmp_path_factory.mktemp("mini") / "set", scenes=11)


@pytest.fixture(scope="module")
def records(mini):
    """Answers with every kind of fault, in a fixed place each."""
    draw = random.Random(5)
    made = copy.deepcopy(answer(open_eval_set(mini), Oracle(mini), progress=False).records)
    for record in made:
        prediction = record["prediction"]
        for one in prediction["objects"]:
            one["score"] = round(draw.uniform(0.2, 0.99), 3)
            x0, y0, x1, y1 = one["box"]
            if draw.random() < 0.3:
                one["box"] = [x0 + 0.45 * (x1 - x0), y0, x1 + 0.45 * (x1 - x0), y1]
        if draw.random() < 0.2:
            prediction |= {"truncated": True, "objects": prediction["objects"][:1]}
        elif prediction["objects"] and draw.random() < 0.3:
            prediction["objects"].append({**prediction["objects"][0], "box": [0.0, 0.0, 9.0, 9.0], "score": 0.9})
    del made[0]
    return made


@pytest.fixture(scope="module")
def page(mini, records, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("scored")
    (folder / "some.parquet").write_bytes(to_parquet(records))
    run_score(folder / "some.parquet", mini, folder / "out", report=QUICK)
    return (folder / "out" / "report.html").read_text()


def cells(page: str, label: str) -> list[list[str]]:
    """Rows of the table of that label, without its head."""
    found = re.search(rf'<div class="wide" role="region" aria-label="{re.escape(label)}".*?</table>', page, re.DOTALL)
    assert found, label
    rows = re.findall(r"<tr>(.*?)</tr>", found[0], re.DOTALL)
    return [
        [re.sub("<.*?>", "", cell) for cell in re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL)] for row in rows[1:]
    ]


def total(page: str, label: str) -> int:
    """Sum of the second column of that table."""
    return sum(int(row[1].replace(",", "")) for row in cells(page, label))


def test_the_same_answers_give_the_same_bytes(mini, records, page, tmp_path):
    shuffled = random.Random(1).sample(records, len(records))
    (tmp_path / "others.parquet").write_bytes(to_parquet(shuffled))
    run_score(tmp_path / "others.parquet", mini, tmp_path / "elsewhere", report=QUICK)
    assert (tmp_path / "elsewhere" / "report.html").read_text() == page


def test_figures_are_those_of_the_analysis(mini, records, page):
    data = open_eval_set(mini)
    analysis = analyse(data, records, masks=True)
    assert analysis.boxes is not None and analysis.masks is not None
    table = {row[0]: row[1:] for row in cells(page, "Mistakes of detection")}
    for kind, number in analysis.boxes.counts.items():
        row = table[kind.replace("_", " ")]
        assert row[0] == str(number) and row[1] == f"{analysis.boxes.costs[kind]:.3f}"
        assert row[3] == str(analysis.masks.counts[kind]) and row[4] == f"{analysis.masks.costs[kind]:.3f}"
    assert total(page, "What became of the sentences") == len(analysis.sentences)
    objects = sum(len(row["objects"]) for row in data.truth.values())
    for label in ("Found, by size", "Found, by patches", "Found, by objects in the picture", "Found, by class"):
        assert total(page, label) == objects
    assert total(page, "Scores of detections and how often they are right") == len(analysis.boxes.detections)
    hallucinated = sum(len(each.hallucinated) for each in analysis.captions.values())
    missed = sum(len(each.missed) for each in analysis.captions.values())
    assert hallucinated and f">{hallucinated:,} of " in page and f"; {missed:,} of " in page
    assert "answers ended at max_new_tokens" in page and "1 samples have no answer" in page


def test_perfect_answers_leave_nothing_to_complain_of(mini, tmp_path):
    records = answer(open_eval_set(mini), Oracle(mini), progress=False).records
    analysis = analyse(open_eval_set(mini), records, masks=True)
    assert analysis.boxes is not None and not any(analysis.boxes.counts.values()) and not analysis.missing
    assert {one.kind for one in analysis.sentences.values()} == {"right"} and not analysis.malformed
    selection = Selection(analysis)
    for task in ("detect", "refer", "caption"):
        assert selection.worst(task, 5) == [] and len(selection.at_random(task, 5)) == 5


def test_the_worst_are_shown_by_kind_and_others_by_chance(mini, records):
    analysis = analyse(open_eval_set(mini), records, masks=True)
    selection = Selection(analysis)
    sentences = selection.worst("refer", 6)
    kinds = [analysis.sentences[one.sample.id].kind for one in sentences]
    assert "right" not in kinds and len(set(kinds[:3])) == min(3, len(set(kinds)))
    for task in ("detect", "refer", "caption"):
        worst = selection.worst(task, 3)
        others = selection.at_random(task, 3, worst)
        rows = [one.sample.row for one in (*worst, *others)]
        assert len(rows) == len(set(rows)) == 6
    right, wrong = Counter(), Counter(image for image, *_ in analysis.boxes.missed)
    for one in analysis.boxes.detections:
        (right if one.right else wrong)[one.image] += 1
    f1 = {image: 2 * right[image] / (2 * right[image] + wrong[image]) for image in wrong}
    shown = [one.sample.id for one in selection.worst("detect", 3)]
    assert [f1[image] for image in shown] == sorted(f1.values())[:3] and f1[shown[0]] < 1


class Reader(HTMLParser):
    """Tags and attributes as a browser would see them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, str, str | None]] = []
        self.tags: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.found += [(tag, name, value) for name, value in attrs]


def test_what_sets_and_models_say_stays_text(tmp_path):
    rows = [scene_row(number) for number in range(3)]
    for row in rows:
        row["key"] = f"{EVIL}/{row['image_id']}"
        row["source"] = row["split"] = EVIL
        for each in (*row["objects"], *row["references"], *row["captions"]):
            each["label" if "label" in each else "text"] = EVIL + str(each.get("text", "")) * ("objects" in each)
    url = write_set(tmp_path / "set", rows)
    records = answer(open_eval_set(url), Oracle(url), progress=False).records
    for record in records:
        record["prediction"] |= {"text": f"{EVIL} (<|VRT_1|>)", "truncated": True}
        for one in record["prediction"]["objects"]:
            one |= {"label": EVIL, "score": 0.3}
    (tmp_path / "some.parquet").write_bytes(to_parquet(records))
    run_score(tmp_path / "some.parquet", url, tmp_path / "out", set_name="<b>x</b>", report=QUICK)
    page = (tmp_path / "out" / "report.html").read_text()
    read = Reader(page)
    assert html.escape(EVIL) in page and not read.tags & {"script", "b", "iframe", "object", "form", "link", "base"}
    assert not [each for each in read.found if each[1].startswith("on") or each[1] == "style"]
    for tag, name, value in read.found:
        if name in ("src", "href"):
            assert value and value.startswith("data:image/jpeg;base64," if tag == "img" else "#")
    assert "default-src 'none'" in html.unescape(page) and "unsafe-inline" not in page


def test_pictures_are_few_whatever_the_size_of_the_set(tmp_path):
    url = write_mini_set(tmp_path / "set", scenes=30)
    records = answer(open_eval_set(url), Oracle(url), progress=False).records
    for record in records:
        for one in record["prediction"]["objects"]:
            one |= {"box": [0.0, 0.0, 3.0, 3.0], "score": 0.9}
    (tmp_path / "some.parquet").write_bytes(to_parquet(records))
    run_score(tmp_path / "some.parquet", url, tmp_path / "out", report=QUICK)
    content = (tmp_path / "out" / "report.html").read_bytes()
    # Ten examples of each of three tasks and eight pictures of missing labels, truth and answer each.
    assert content.count(b"<img") == 2 * (3 * 10 + 8) and len(content) < 8_000_000


def test_a_picture_that_cannot_be_read_is_left_out(tmp_path):
    rows = [scene_row(number) for number in range(3)]
    rows[1]["image"]["bytes"] = b"broken"
    url = write_set(tmp_path / "set", rows)
    records = answer(open_eval_set(url), Oracle(url), progress=False).records
    (tmp_path / "some.parquet").write_bytes(to_parquet(records))
    run_score(tmp_path / "some.parquet", url, tmp_path / "out", report=QUICK)
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<img") == 2 * 3 * 2 and "samples had an unreadable image" in page


def test_a_report_that_is_not_wanted_is_not_left_from_before(mini, records, tmp_path):
    (tmp_path / "some.parquet").write_bytes(to_parquet(records))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.html").write_text("of other answers")
    run_score(tmp_path / "some.parquet", mini, tmp_path / "out", report=ReportOptions(page=False, pictures=0))
    assert not (tmp_path / "out" / "report.html").exists() and (tmp_path / "out" / "missing_labels.json").exists()


def test_sets_with_one_task_or_without_objects_have_a_report_too(tmp_path):
    url = write_mini_set(tmp_path / "set", scenes=3)
    for task in ("refer", "caption"):
        records = answer(open_eval_set(url, [task]), Oracle(url), progress=False).records
        (tmp_path / f"{task}.parquet").write_bytes(to_parquet(records))
        run_score(tmp_path / f"{task}.parquet", url, tmp_path / task, report=QUICK)
        page = (tmp_path / task / "report.html").read_text()
        assert "Detection:" not in page and not (tmp_path / task / "missing_labels.json").exists()
    empty = {**scene_row(0, texts=False), "objects": []}
    bare = write_set(tmp_path / "bare", [empty])
    records = answer(open_eval_set(bare), Oracle(bare), progress=False).records
    (tmp_path / "bare.parquet").write_bytes(to_parquet(records))
    run_score(tmp_path / "bare.parquet", bare, tmp_path / "out", report=QUICK)
    assert "there is no AP to lose" in (tmp_path / "out" / "report.html").read_text()


def test_in_a_browser_it_fits_a_phone_and_the_keyboard_reaches_everything(page, tmp_path):
    api = pytest.importorskip("playwright.sync_api", reason="playwright (extra dev) is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium")
    (tmp_path / "report.html").write_text(page)
    with api.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page(viewport={"width": 390, "height": 800})
        said: list[str] = []
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.goto((tmp_path / "report.html").as_uri(), timeout=120_000)
        # The policy lets the style through, and nothing is wider than the phone.
        assert said == [] and tab.evaluate("document.documentElement.scrollWidth") <= 390
        assert tab.evaluate("[...document.images].every(each => each.complete && each.naturalWidth > 0)")
        backgrounds = set()
        for scheme in ("light", "dark"):
            tab.emulate_media(color_scheme=scheme)
            backgrounds.add(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert len(backgrounds) == 2
        tab.keyboard.press("Tab")
        assert tab.evaluate("document.activeElement.textContent") == "To the content"
        reached = {"a": 0, "summary": 0, "div": 0}
        for _ in range(25):
            tab.keyboard.press("Tab")
            name = tab.evaluate("document.activeElement.tagName.toLowerCase()")
            reached[name] = reached.get(name, 0) + 1
        assert reached["a"] and reached["summary"] and reached["div"]
        tab.focus("summary")
        tab.keyboard.press("Enter")
        assert tab.evaluate("document.querySelector('details').open")
        browser.close()
