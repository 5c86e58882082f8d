"""Conversations from a file to training: what is kept, what is refused and why, and that they mix with objects."""

import base64
import gzip
import json
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from padt.data.conversation import ConversationError
from padt.data.image import ResizePolicy
from padt.data.tasks import TaskOptions
from padt.errors import UserError
from pipelines.dataset.index import load_index
from pipelines.dataset.schema import OPTIONAL_COLUMNS
from pipelines.exports.run import export_data
from pipelines.inspection.inspect import inspect
from pipelines.loader.mixture import SetSpec
from pipelines.loader.plan import make_plan
from pipelines.loader.reader import ReaderOptions, TrainingReader
from pipelines.prepare.execute import execute_here
from pipelines.prepare.run import PrepareOptions, prepare
from pipelines.sources.messages import read_conversation
from tests.jobs.tiny_model import write_tiny_model
from tests.pipelines.coco_files import image_bytes, rejects_of, rows_of
from tests.pipelines.mini_set import write_mini_set


def human(text):
    return {"from": "human", "value": text}


def gpt(text):
    return {"from": "gpt", "value": text}


def said(*content, answer="ok"):
    return [{"role": "user", "content": list(content)}, {"role": "assistant", "content": answer}]


def photo(name):
    return {"type": "image_url", "image_url": {"url": name}}


DATA_URL = f"data:image/jpeg;base64,{base64.b64encode(image_bytes(84, 56)).decode()}"


@pytest.fixture
def folder(tmp_path):
    """Four pictures of different sizes."""
    (tmp_path / "images").mkdir()
    for number in range(4):
        content = image_bytes(56 + 28 * number, 84, seed=number)
        (tmp_path / "images" / f"{number}.jpg").write_bytes(content)
    return tmp_path


def prepare_rows(folder, rows, out="set", lines=False, **options):
    text = "\n".join(json.dumps(row) for row in rows) if lines else json.dumps(rows, indent=1)
    (folder / "chat.json").write_text(text)
    return prepare_file(folder, "chat.json", out, **options)


def prepare_file(folder, file, out="set", **options):
    options = {"images": str(folder / "images"), "name": "chat", **options}
    asked = PrepareOptions(annotations=str(folder / file), out=str(folder / out), source="messages", **options)
    return prepare(asked, execute=execute_here)


GOOD = [
    {
        "id": "one",
        "image": "0.jpg",
        "conversations": [human("<image>\nWhat?"), gpt("A 猫."), human("Sure?"), gpt("Yes.")],
    },
    {"id": "one", "image": ["1.jpg", "2.jpg"], "conversations": [human("<image> or <image>?"), gpt("Both.")]},
    {"conversations": [{"from": "system", "value": "Be brief."}, human("2 + 2?"), gpt("<|im_end|> <|VRT_3|> 4")]},
    {"id": "parts", "messages": said(photo("3.jpg"), {"type": "text", "text": "What?"})},
    {"id": 7, "images": ["0.jpg"], "messages": said({"type": "text", "text": "no marker"})},
    {"id": "plain", "messages": [{"role": "developer", "content": "x"}, *said("y")]},
]


@pytest.mark.parametrize("lines", [False, True])
def test_rows_arrive_whole(folder, lines):
    manifest = prepare_rows(folder, GOOD, lines=lines)
    counts = manifest.counts
    assert counts.conversations == counts.rows == counts.input["conversation"] == len(GOOD) and counts.rejects == {}
    rows = {row["image_id"]: row for row in rows_of(folder / "set")}
    # LLaVA's files give all conversations about a photograph its id: none may be lost, all keys differ.
    assert set(rows) == {"one", "one#2", "000000003", "parts", "7", "plain"}
    assert counts.repairs == {"id_given": 1, "id_repeated": 1}

    def content(number):
        return (folder / "images" / f"{number}.jpg").read_bytes()

    assert [message["content"] for message in rows["one"]["messages"]] == ["<image>\nWhat?", "A 猫.", "Sure?", "Yes."]
    assert rows["one"]["image"] == {"bytes": content(0), "path": "0.jpg"} and rows["one"]["more_images"] == []
    two = rows["one#2"]
    assert two["image"]["bytes"] == content(1) and two["more_images"] == [{"bytes": content(2), "path": "2.jpg"}]
    assert (two["grid_h"], two["grid_w"]) == (3, 3) and two["more_grids"] == [{"grid_h": 3, "grid_w": 4}]
    text = rows["000000003"]
    assert text["image"] is None and (text["width"], text["grid_h"], text["grid_w"]) == (0, 0, 0)
    assert [message["role"] for message in text["messages"]] == ["system", "user", "assistant"]
    assert text["messages"][2]["content"] == "<|im_end|> <|VRT_3|> 4"
    assert rows["parts"]["messages"][0]["content"] == "<image>What?" and rows["parts"]["image"]["path"] == "3.jpg"
    assert rows["7"]["messages"][0]["content"] == "no marker" and rows["7"]["image"]["path"] == "0.jpg"
    assert rows["plain"]["messages"][0]["role"] == "system"


BAD = {
    "image_marker_mismatch": [
        {"image": "0.jpg", "conversations": [human("<image> <image>"), gpt("a")]},
        {"conversations": [human("<image>?"), gpt("a")]},
        # In parts, text is text: what looks like a marker there would be taken for one when the shard is read.
        {"messages": said(photo("0.jpg"), {"type": "text", "text": "what does <image> mean?"})},
    ],
    "roles_out_of_order": [
        {"conversations": [gpt("a")]},
        {"conversations": [human("a"), gpt("b"), human("c")]},
        {"conversations": []},
        {"conversations": [human("a"), human("b"), gpt("c")]},
    ],
    "answer_empty": [{"conversations": [human("a"), gpt(" \n")]}, {"messages": said("a", answer="")}],
    "role_unknown": [{"conversations": [human("a"), {"from": "tool", "value": "b"}]}],
    "conversation_malformed": [
        7,
        None,
        {"id": "x"},
        {"conversations": [human(None), gpt("a")]},
        {"conversations": [{"value": "a"}, gpt("b")]},
        {"messages": said("a", answer=None)},
        {"image": {"no": 1}, "conversations": [human("<image>"), gpt("a")]},
        {"image": "a\x00.jpg", "conversations": [human("<image>"), gpt("a")]},
    ],
    "content_unsupported": [
        {"video": "v.mp4", "conversations": [human("<video>\nWhat happens?"), gpt("a")]},
        {"videos": ["v.mp4"], "image": "0.jpg", "conversations": [human("<image> What?"), gpt("a")]},
        {"audio": {"path": "a.wav"}, "messages": said("What is said?")},
        {"conversations": [human("<audio>What is said?"), gpt("a")]},
        {"messages": said("<video> What happens?")},
        {"messages": said({"type": "input_audio", "input_audio": {}})},
        {"messages": said(photo("data:image/png;base64,?"))},
        {"messages": said(photo("data:text/html,<p>"))},
        {"messages": said(photo(DATA_URL), photo("0.jpg"))},
    ],
}
SYSTEM = [
    ({"system": "Be short.", "conversations": [human("a"), gpt("b")]}, "Be short."),
    ({"system_prompt": "Be short.", "messages": said("a")}, "Be short."),
    ({"conversations": [{"from": "system", "value": "Be kind."}, human("a"), gpt("b")]}, "Be kind."),
    (
        {"system": "Be short.", "conversations": [{"from": "system", "value": "Be kind."}, human("a"), gpt("b")]},
        "Be short.\n\nBe kind.",
    ),
    (
        {"system": "Be kind.", "conversations": [{"from": "system", "value": "Be kind."}, human("a"), gpt("b")]},
        "Be kind.",
    ),
    ({"system": "", "conversations": [human("a"), gpt("b")]}, None),
    ({"system": None, "video": None, "audios": [], "conversations": [human("a"), gpt("<video> is a tag")]}, None),
]


@pytest.mark.parametrize(("row", "system"), SYSTEM)
def test_what_the_system_is_told_is_kept_wherever_it_stands(row, system):
    messages = read_conversation(row).messages
    assert [each["content"] for each in messages if each["role"] == "system"] == ([] if system is None else [system])
    assert [each["role"] for each in messages][-2:] == ["user", "assistant"]


def test_a_system_field_that_is_no_text_is_no_conversation():
    with pytest.raises(ConversationError) as caught:
        read_conversation({"system": ["a"], "conversations": [human("a"), gpt("b")]})
    assert caught.value.reason == "conversation_malformed"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"query": "a", "response": "b", "images": ["1.png"]}, r"'query' and 'response' \(ms-swift\).*'messages'"),
        ({"instruction": "a", "input": "", "output": "b"}, r"'instruction' and 'output' \(Alpaca\).*'messages'"),
        ({"question": "a", "answer": "b"}, r"'question' and 'answer'.*'messages'"),
        ({"conversatons": [human("a"), gpt("b")]}, r"'conversatons'.*'conversations'"),
        ({"images": [{"bytes": None, "path": "1.png"}], "messages": said("<image>?")}, "path.*name of its file"),
    ],
)
def test_rows_of_other_layouts_are_named_with_what_to_do(folder, row, message):
    with pytest.raises(ConversationError, match=message):
        read_conversation(row)
    with pytest.raises(UserError, match=f"no usable row.*{message}"):
        prepare_rows(folder, [row])


BAD_IMAGES = {
    "image_missing": ["gone.jpg", ["0.jpg", "gone.jpg"]],
    "image_unreadable": ["text.jpg", ["0.jpg", "1.jpg", "text.jpg"]],
    "image_outside_root": ["../chat.json", "https://example.com/a.jpg", ["0.jpg", "/etc/passwd"]],
}


def test_what_cannot_be_used_is_rejected_with_its_reason_and_counts_add_up(folder):
    (folder / "images" / "text.jpg").write_text("no picture")
    rows = [GOOD[0], *(row for rows in BAD.values() for row in rows)]
    for number, image in enumerate(image for images in BAD_IMAGES.values() for image in images):
        marks = "<image>" * (len(image) if isinstance(image, list) else 1)
        rows.append({"id": f"image-{number}", "image": image, "conversations": [human(marks), gpt("a")]})
    manifest = prepare_rows(folder, rows)
    bad_images = sum(map(len, BAD_IMAGES.values()))
    expected = {reason: len(rows) for reason, rows in (BAD | BAD_IMAGES).items()} | {"image_rejected": bad_images}
    assert manifest.counts.rejects == expected
    assert manifest.counts.rows == manifest.counts.conversations == 1
    assert manifest.counts.input["conversation"] == len(rows)
    assert manifest.counts.rejected["conversation"] == len(rows) - 1
    found = Counter((reject["kind"], reject["reason"]) for reject in rejects_of(folder / "set"))
    assert found["conversation", "answer_empty"] == 2 and found["image", "image_missing"] == 2


@pytest.mark.parametrize("mode", ["copy", "link"])
def test_pictures_in_the_rows_themselves_are_taken_out(folder, mode):
    # Chat APIs' logs have them so; neither they nor broken ones among them need an image folder.
    broken = f"data:image/png;base64,{base64.b64encode(b'no picture').decode()}"
    rows = [
        {"id": "two", "messages": said(photo(DATA_URL), {"type": "text", "text": "or"}, photo(DATA_URL))},
        {"id": "broken", "messages": said(photo(broken))},
    ]
    manifest = prepare_rows(folder, rows, images=(), images_mode=mode)
    (row,) = rows_of(folder / "set")
    # The same picture twice has one name, made from its content.
    assert row["image"]["bytes"] == image_bytes(84, 56) and row["more_images"] == [row["image"]]
    assert len(row["image"]["path"]) == 24 + len(".jpeg")
    assert (row["grid_h"], row["grid_w"]) == (2, 3) and row["messages"][0]["content"] == "<image>or<image>"
    assert manifest.counts.rejects == {"image_unreadable": 1, "image_rejected": 1}


def test_files_that_are_not_conversations_say_what_is_wanted(folder):
    for content, message in [
        ("", "is empty"),
        ("[]", "no usable row"),
        ('[{"image": "a.jpg", "caption": "b"}]', r"no usable row \(1 conversation_malformed\): give rows with"),
        ('[{"conversations": [', "cut off"),
        ('{"conversations": 1}\n{"conv', "line 2"),
        ("[1, 2] 3", "goes on after"),
    ]:
        (folder / "bad.json").write_text(content)
        with pytest.raises(UserError, match=message):
            prepare_file(folder, "bad.json")
    with pytest.raises(UserError, match="0.jpg: say where they lie with --images"):
        prepare_rows(folder, GOOD, out="other", images=())


def test_text_alone_needs_no_images_and_files_may_be_compressed(folder):
    rows = [{"id": number, "conversations": [human("a" * number), gpt("b")]} for number in range(5)]
    (folder / "chat.jsonl.gz").write_bytes(gzip.compress("\n".join(json.dumps(row) for row in rows).encode()))
    manifest = prepare_file(folder, "chat.jsonl.gz", images=(), rows_per_shard=2)
    assert [shard.rows for shard in manifest.shards] == [2, 2, 1]
    assert {shard.sha256 for shard in manifest.shards} == {
        shard.sha256 for shard in prepare_file(folder, "chat.jsonl.gz", "again", images=(), rows_per_shard=2).shards
    }


def test_conversations_about_pictures_of_an_excluded_set_are_left_out_whole(folder, caplog):
    # Wherever among its pictures the one stands, and under whatever name; text alone is nobody's picture.
    prepare_rows(folder, GOOD[:1], out="held", name="held")
    (folder / "images" / "copy.jpg").write_bytes((folder / "images" / "0.jpg").read_bytes())
    copied = {"id": "copied", "image": ["1.jpg", "copy.jpg"], "conversations": [human("<image><image>"), gpt("a")]}
    manifest = prepare_rows(folder, [copied, *GOOD[1:4]], exclude=(str(folder / "held"),))
    assert manifest.counts.excluded == {"conversation": 1, "image": 1} and manifest.counts.conversations == 3
    assert [(each.images, each.removed["same_bytes"]) for each in manifest.exclusions] == [(1, 1)]
    prepare_rows(folder, GOOD[2:3], out="text", exclude=(str(folder / "held"),))
    assert "hashes" not in caplog.text


def test_the_index_knows_conversations_and_their_size(folder):
    prepare_rows(folder, GOOD)
    index = load_index(str(folder / "set"))
    place = {key.rpartition("/")[2]: number for number, key in enumerate(index.keys.to_pylist())}
    assert index.items("chat")[0].tolist() == list(range(6)) and len(index.items("detect")[0]) == 0
    assert index.turns[place["one"]] == 4 and index.more_patches[place["one#2"]] == 12
    assert index.characters[place["one"]] == len("<image>\nWhat?A 猫.Sure?Yes.".encode())


def test_sets_from_before_there_were_conversations_are_read(tmp_path, model):
    # Columns are added within a schema version: whoever prepared Objects365 last month need not do it again.
    url = write_mini_set(tmp_path / "old", 4)
    for shard in (tmp_path / "old" / "shards").iterdir():
        table = pq.read_table(shard).drop_columns(list(OPTIONAL_COLUMNS))
        pq.write_table(table, shard, row_group_size=4)
    assert load_index(url).turns.tolist() == [0] * 4
    assert len(inspect(url).rows) == 4
    plan = make_plan([SetSpec(url)], seed=1, batch_size=4, micro_batches=1, policy=ResizePolicy())
    reader = TrainingReader(plan, 0, model, TaskOptions(), start=0, stop=2, options=ReaderOptions(ray=False))
    assert len(list(reader)) == 2
    with pytest.raises(UserError, match="has no conversations: remove task 'chat'"):
        make_plan([SetSpec(url, {"chat": 1.0})], seed=1, batch_size=4, micro_batches=1, policy=ResizePolicy())


def test_a_look_at_a_set_of_conversations(folder):
    prepare_rows(folder, GOOD)
    report = inspect(str(folder / "set"), count=6, out=str(folder / "view.png"))
    assert ("conversations", 6, 6, 0) in [tuple(each[:4]) for each in report.kept]
    assert report.picture.width > 0 and all("bytes" not in str(row["messages"]) for row in report.rows)
    assert inspect(str(folder / "set"), key="000000003").picture.height > 0
    assert "conversations" in (folder / "set" / "report.html").read_text()


def test_an_exported_set_is_prepared_again_as_the_same(folder):
    prepare_rows(folder, GOOD)
    export_data(str(folder / "set"), str(folder / "export"), "released")
    prepare_file(folder, "export/chat.jsonl", "again", images=str(folder / "export" / "images"))
    first, again = rows_of(folder / "set"), rows_of(folder / "again")
    assert [row["key"] for row in first] == [row["key"] for row in again] and first == again


def test_other_tools_show_the_pictures(folder, tmp_path):
    datasets, duckdb = pytest.importorskip("datasets"), pytest.importorskip("duckdb")
    prepare_rows(folder, GOOD)
    files = str(folder / "set" / "shards" / "*.parquet")
    table = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    rows = {row["image_id"]: row for row in table}
    assert rows["one#2"]["image"].size == (84, 84) and rows["one#2"]["more_images"][0].size == (112, 84)
    assert rows["000000003"]["image"] is None and rows["one"]["messages"][1]["content"] == "A 猫."
    query = f"select image_id, len(messages), len(more_images) from '{files}' order by len(messages) desc limit 1"
    assert duckdb.sql(query).fetchall() == [("one", 4, 0)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def test_conversations_and_objects_train_together(folder, model):
    # Objects, two images, one and none in one run through the real reader: every batch trains, and both kinds learn.
    from padt.checkpoints.loading import load_model

    prepare_rows(folder, GOOD)
    specs = [
        SetSpec(write_mini_set(folder / "mini", 4), {"detect": 1.0, "refer": 0.2, "caption": 0.3}),
        SetSpec(str(folder / "set"), {"chat": 2.0}),
    ]
    plan = make_plan(specs, seed=1, batch_size=4, micro_batches=1, policy=ResizePolicy())
    reader = TrainingReader(plan, 0, model, TaskOptions(), start=0, stop=12, options=ReaderOptions(ray=False))
    trained = load_model(model, device="cpu").train()
    optimizer = torch.optim.AdamW(trained.parameters(), lr=2e-3)
    losses, kinds, images = [], Counter(), set()
    for _, batch in reader:
        output = trained(batch=batch)
        optimizer.zero_grad()
        output.total.backward()
        optimizer.step()
        losses.append(float(output.parts["token"]))
        kinds.update(batch.tasks)
        images.update(zip(batch.tasks, batch.patch_counts, strict=True))
        assert all(value.isfinite() for value in output.parts.values())
    assert kinds["chat"] >= 12 and kinds["detect"] and kinds["refer"] and kinds["caption"]
    assert {count for task, count in images if task == "chat"} >= {0, 21}, "text alone, and two images"
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])


def test_a_batch_of_text_alone_trains(folder, model):
    from padt.checkpoints.loading import load_model

    rows = [{"conversations": [human(f"{number} + 1?"), gpt(str(number + 1))]} for number in range(4)]
    prepare_rows(folder, rows)
    plan = make_plan(
        [SetSpec(str(folder / "set"), {"chat": 1.0})], seed=1, batch_size=4, micro_batches=1, policy=ResizePolicy()
    )
    reader = TrainingReader(plan, 0, model, TaskOptions(), start=0, stop=1, options=ReaderOptions(ray=False))
    ((_, batch),) = list(reader)
    assert batch.patch_counts == [0] * 4
    output = load_model(model, device="cpu").train()(batch=batch)
    output.total.backward()
    assert output.parts["token"] > 0 and output.parts["box"] == 0


def test_linked_pictures_of_a_conversation_are_read_where_they_lie(folder, model, monkeypatch):
    prepare_rows(folder, GOOD, images_mode="link")
    two = next(row for row in rows_of(folder / "set") if row["image_id"] == "one#2")
    assert two["image"]["bytes"] is None and two["more_images"][0]["path"].endswith("2.jpg")
    plan = make_plan(
        [SetSpec(str(folder / "set"), {"chat": 1.0})], seed=1, batch_size=6, micro_batches=1, policy=ResizePolicy()
    )
    options = ReaderOptions(ray=False, quarantine=0)
    ((_, batch),) = list(TrainingReader(plan, 0, model, TaskOptions(), start=0, stop=1, options=options))
    assert sum(batch.patch_counts) == 6 + 9 + 12 + 15 + 6
    (folder / "images" / "2.jpg").unlink()
    monkeypatch.setattr("pipelines.loader.sample_source._PAUSES", (0.01,))
    with pytest.raises(UserError, match="one#2.*does not exist"):
        list(TrainingReader(plan, 0, model, TaskOptions(), start=0, stop=1, options=options))


@pytest.mark.slow
def test_the_command_prepares_real_photographs_on_ray(samples, tmp_path, ray_cluster):
    from typer.testing import CliRunner

    from jobs.cli.main import app

    names = sorted(path.name for path in (samples / "coco" / "val2017").iterdir())[:6]
    rows = [
        {"id": name, "image": f"coco/val2017/{name}", "conversations": [human("<image>\nWhat is it?"), gpt("A photo.")]}
        for name in names
    ]
    rows.append({"id": "pair", "image": names[:2], "conversations": [human("<image><image>"), gpt("Two.")]})
    rows.append({"conversations": [human("Hello"), gpt("Hello!")]})
    (tmp_path / "chat.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    out = tmp_path / "set"
    command = ["prepare", "messages", "-a", str(tmp_path / "chat.jsonl"), "-i", str(samples / "coco" / "val2017")]
    result = CliRunner().invoke(app, [*command, "-o", str(out), "--name", "llava", "--rows-per-shard", "3"])
    assert result.exit_code == 0, result.output
    found = rows_of(out)
    assert sorted(row["key"] for row in found) == sorted(
        [f"llava/train/{name}" for name in names] + ["llava/train/pair", "llava/train/000000008"]
    )
    pair = next(row for row in found if row["image_id"] == "pair")
    stored = [pair["image"]["bytes"], pair["more_images"][0]["bytes"]]
    assert stored == [(samples / "coco" / "val2017" / name).read_bytes() for name in names[:2]]
