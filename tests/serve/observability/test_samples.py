"""What is kept of requests is a data set: `padt prepare` reads it back with boxes, masks, sentences and captions."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ray.data")

from PIL import Image  # noqa: E402

from padt.data.rle import decode  # noqa: E402
from padt.errors import UserError  # noqa: E402
from padt.inference.requests import (  # noqa: E402
    Request,
    caption_request,
    chat_request,
    detect_request,
    refer_request,
    text_request,
)
from pipelines.dataset.read import spread_rows  # noqa: E402
from pipelines.prepare.execute import execute_here  # noqa: E402
from pipelines.prepare.options import PrepareOptions  # noqa: E402
from pipelines.prepare.run import prepare  # noqa: E402
from serve.messages import Job, Outcome  # noqa: E402
from serve.observability.records import AnswerRecord  # noqa: E402
from serve.observability.samples import SampleWriter, sample_line  # noqa: E402
from serve.observability.sampling import chosen  # noqa: E402
from tests.serve.observability.parts import CountedMeters, found, job, outcome  # noqa: E402


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 60, 3), np.uint8))


def keep(writer: SampleWriter, *pairs: tuple[Job, Outcome]) -> None:
    for question, end in pairs:
        writer.answered(question, end, AnswerRecord.of(question, end))
    writer.close()


def writer_of(folder: Path | str, share: float = 1.0, limit_mb: float = 100.0) -> tuple[SampleWriter, CountedMeters]:
    meters = CountedMeters()
    return SampleWriter(str(folder), share, limit_mb, meters), meters


def rows_of(source: str, lines: Path, images: Path, out: Path) -> list[Mapping[str, Any]]:
    options = PrepareOptions(source=source, annotations=str(lines), images=(str(images),), out=str(out))
    manifest = prepare(options, execute=execute_here)
    assert not manifest.counts.rejects, manifest.counts
    return spread_rows(str(out), manifest, 100)


def test_a_preparation_reads_pictures_boxes_masks_sentences_and_captions_back(tmp_path: Path) -> None:
    writer, meters = writer_of(tmp_path / "kept")
    cat, dog = found("cat", patches=(0, 1)), found("dog", (0.0, 0.0, 20.0, 20.0), patches=(3,), mask=False)
    caption = "a cat <|VRT_0|><|VRT_1|> and a ghost (<|VRT_5|>) by a dog <|VRT_3|>."
    first, second = picture(1), picture(2)
    keep(
        writer,
        (job(detect_request(["cat", "dog"]), first, request_id="a"), outcome(dog, cat)),
        (job(refer_request('the "left" cat'), first, request_id="b"), outcome(cat)),
        (job(caption_request(), second, request_id="c"), outcome(cat, dog, text=caption)),
    )
    (lines,) = (tmp_path / "kept").glob("grounded-*.jsonl")
    rows = rows_of("released", lines, tmp_path / "kept" / "images", tmp_path / "set")
    by_size = {len(row["captions"]): row for row in rows}
    one, other = by_size[0], by_size[1]
    assert sorted(item["label"] for item in one["objects"]) == ["cat", "dog"]
    seen = next(item for item in one["objects"] if item["label"] == "cat")
    assert seen["box"] == pytest.approx([10 / 60, 5 / 40, 40 / 60, 35 / 40])
    assert decode(seen["rle"]).sum() == 900 and seen["area"] == 900
    (reference,) = one["references"]
    assert reference["text"] == 'the "left" cat' and one["objects"][reference["objects"][0]]["label"] == "cat"
    (told,) = other["captions"]
    assert told["text"] == "a cat (<|Obj_0|>) and a ghost by a dog (<|Obj_1|>)." and len(told["objects"]) == 2
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(one["image"]["bytes"]))), np.asarray(first))
    assert not meters.seen


def test_conversations_are_read_back_with_all_their_pictures(tmp_path: Path) -> None:
    writer, _ = writer_of(tmp_path / "kept")
    parts = [
        {"type": "image", "image": picture(1)},
        {"type": "text", "text": "and"},
        {"type": "image", "image": picture(2)},
    ]
    images, conversation = chat_request(
        [{"role": "user", "content": [*parts, {"type": "text", "text": "differ how?"}]}]
    )
    keep(
        writer,
        (Job(tuple(images), conversation, request_id="a"), outcome(text="A dot <|VRT_3|> moved.")),  # type: ignore[arg-type]
        (job(text_request("what is this?"), picture(3), request_id="b"), outcome(text="A cat.")),
        (Job((), text_request("hello"), request_id="c"), outcome(text="Hello!")),
    )
    (lines,) = (tmp_path / "kept").glob("chat-*.jsonl")
    rows = {row["image_id"]: row for row in rows_of("messages", lines, tmp_path / "kept" / "images", tmp_path / "set")}
    assert [turn["content"] for turn in rows["a"]["messages"]] == [
        "<image>and<image>differ how?",
        "A dot  moved.",
    ]
    assert len(rows["a"]["more_images"]) == 1
    assert rows["b"]["messages"][0]["content"].endswith("what is this?")
    assert rows["c"]["messages"][1]["content"] == "Hello!"


def test_the_line_says_which_model_answered_and_how_it_ended(tmp_path: Path) -> None:
    writer, _ = writer_of(tmp_path)
    keep(writer, (job(refer_request("x"), picture(1)), outcome(found("x"), reason="length")))
    (path,) = tmp_path.glob("grounded-*.jsonl")
    line = json.loads(path.read_text())
    assert (line["version"], line["fingerprint"], line["result"]) == ("padt/7", "abc", "length")
    assert line["objects"][0]["score"] == 0.75


def test_a_full_folder_takes_no_more_and_that_is_counted(tmp_path: Path) -> None:
    (tmp_path / "others.bin").write_bytes(b"x" * 95_000)
    writer, meters = writer_of(tmp_path, limit_mb=0.1)
    keep(writer, *((job(caption_request(), picture(seed), request_id=str(seed)), outcome()) for seed in range(4)))
    size = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert size <= 100_000
    assert meters.total("padt_left_out_total", observer="samples") == 4


def test_the_same_picture_is_kept_once(tmp_path: Path) -> None:
    writer, _ = writer_of(tmp_path)
    keep(writer, *((job(refer_request(f"x{n}"), picture(1), request_id=str(n)), outcome()) for n in range(3)))
    assert len(list((tmp_path / "images").iterdir())) == 1
    (path,) = tmp_path.glob("grounded-*.jsonl")
    assert len(path.read_text().splitlines()) == 3


def test_a_share_is_chosen_by_the_id_alone() -> None:
    ids = [f"request-{number}" for number in range(4000)]
    share = [name for name in ids if chosen(name, 0.25)]
    assert 0.21 < len(share) / len(ids) < 0.29
    assert share == [name for name in ids if chosen(name, 0.25)]
    assert {name for name in ids if chosen(name, 0.1)} <= set(share)
    assert not any(chosen(name, 0.0) for name in ids) and all(chosen(name, 1.0) for name in ids)


def test_lines_of_a_batch_are_chosen_one_by_one(tmp_path: Path) -> None:
    writer, _ = writer_of(tmp_path, share=0.5)
    image = picture(1)
    keys = [str(number) for number in range(16)]
    keep(writer, *((job(refer_request("x"), image, request_id="one", picture_key=key), outcome()) for key in keys))
    (path,) = tmp_path.glob("grounded-*.jsonl")
    assert len(path.read_text().splitlines()) == sum(chosen(f"one{key}", 0.5) for key in keys) > 1


def test_what_was_not_chosen_or_not_answered_is_not_kept(tmp_path: Path) -> None:
    writer, _ = writer_of(tmp_path, share=0.000001)
    keep(writer, (job(request_id="r"), outcome()))
    writer, _ = writer_of(tmp_path)
    keep(writer, (job(), Outcome(trouble="busy", message="full")))
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_objects_whose_tokens_are_not_where_they_were_still_have_their_place() -> None:
    # The parser drops repeats, and splits groups that cross pictures.
    text = "one <|VRT_0|><|VRT_0|><|VRT_1|> two <|VRT_4|>"
    objects = (found("one", patches=(0, 1)), found("two", patches=(4,)))
    _, line = sample_line(job(), outcome(*objects, text=text).prediction or {}, ["a.png"])
    assert line["answer_template"] == "one <|Obj_0|> two <|Obj_1|>"


def test_a_folder_that_cannot_be_is_told_of_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="sample_folder .* cannot be written"):
        writer_of(tmp_path / "file" / "inner")


def test_samples_go_to_an_object_store_too(object_store: Any) -> None:
    writer, _ = writer_of("s3://data/kept")
    keep(writer, *((job(refer_request(f"x{n}"), picture(n), request_id=str(n)), outcome()) for n in range(2)))
    names = sorted(name.rpartition("/")[2] for name in object_store.find("data/kept"))
    assert [name.rpartition(".")[2] for name in names].count("png") == 2
    lines = [name for name in object_store.find("data/kept") if name.endswith(".jsonl")]
    assert sorted(json.loads(object_store.cat(name))["id"] for name in lines) == ["0", "1"]


def test_requests_of_unknown_words_are_conversations() -> None:
    kind, line = sample_line(job(Request("chat", "zoom in")), outcome(text="no").prediction or {}, ["a.png"])
    assert kind == "chat" and line["messages"][0]["content"] == [
        {"type": "image", "image": "a.png"},
        {"type": "text", "text": "zoom in"},
    ]
