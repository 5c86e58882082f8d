"""Exported pictures never share a file, whatever their sources call them, and no system refuses their names."""

import base64
import json

import pytest

from jobs.data.export import run_export_data
from pipelines.exports.names import Names, safe_name
from pipelines.exports.run import export_data
from pipelines.prepare.run import PrepareOptions
from tests.pipelines.coco_files import annotation, image_bytes, options_for, prepare_here, write_coco


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("train2017/000000000139.jpg", "train2017/000000000139.jpg"),
        ("Übung 1.png", "Übung 1.png"),
        ("shot 10:20.png", "shot 10_20.png"),
        ("..\\..\\media\\x.png", "media/x.png"),
        ("C:\\Users\\me\\x.png", "Users/me/x.png"),
        ("/home/me/./x.png", "home/me/x.png"),
        ("https://example.org/a?d=1.png", "example.org/a_d=1.png"),
        ("aux.png", "_aux.png"),
        ("COM1.tar.gz", "_COM1.tar.gz"),
        ("dots. /x.png", "dots/x.png"),
        ("a\x00b<c>.png", "a_b_c_.png"),
        ("..", ""),
        ("", ""),
    ],
)
def test_names_are_safe_on_every_system(path, name):
    assert safe_name(path) == name and safe_name(name) == name


def test_long_names_are_cut_and_stay_apart():
    long = ["é" * 300 + f"{number}.png" for number in (1, 2)]
    cut = [safe_name(each) for each in long]
    assert cut[0] != cut[1] and all(len(each.encode()) < 255 and each.endswith(".png") for each in cut)


def test_no_name_is_given_to_two_pictures():
    names = Names()
    wanted = [
        "1.png",
        "1.png",
        "1.PNG",
        "1~2.png",
        "a",
        "a/b.png",
        "a/b.png",
        "A",
        "c/d.png",
        "c",
        "e\u0301.png",
        "\u00e9.png",
    ]
    given = [names.give(name, number) for number, name in enumerate(wanted)]
    folded = [each.casefold() for each in given]
    assert len(set(folded)) == len(folded)
    assert not {each.rpartition("/")[0] for each in folded} & set(folded)
    assert [names.give(name, number) for number, name in enumerate(wanted)] == given
    assert given[0] == "1.png" and given[5] == "a_b~2.png"


def _embedded(number, seed):
    picture = base64.b64encode(image_bytes(kind="PNG", seed=seed)).decode()
    return {
        "id": number,
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
                    {"type": "text", "text": "What?"},
                ],
            },
            {"role": "assistant", "content": "This."},
        ],
    }


def test_embedded_pictures_come_out_as_files_of_their_own(tmp_path):
    rows = [_embedded(number, number) for number in range(4)] + [_embedded(9, 0)]
    (tmp_path / "chat.json").write_text(json.dumps(rows))
    prepare_here(
        PrepareOptions(source="messages", annotations=str(tmp_path / "chat.json"), images=(), out=str(tmp_path / "set"))
    )
    exported = export_data(str(tmp_path / "set"), str(tmp_path / "out"), to="released")
    lines = [json.loads(line) for line in (tmp_path / "out" / "chat.jsonl").read_text().splitlines()]
    files = {line["id"]: (tmp_path / "out" / "images" / line["image"]).read_bytes() for line in lines}
    assert files == {number: image_bytes(kind="PNG", seed=number % 9) for number in (0, 1, 2, 3, 9)}
    # The picture that two rows are about is there once.
    assert exported.files["images/"] == len(list((tmp_path / "out" / "images").iterdir())) == 4


def _named(folder, names):
    content = json.loads((folder / "instances.json").read_text())
    for image, name in zip(content["images"], names, strict=True):
        (folder / "images" / image["file_name"]).rename(folder / "images" / name)
        image["file_name"] = name
    (folder / "instances.json").write_text(json.dumps(content))


@pytest.mark.parametrize("to", ["coco", "released"])
def test_a_name_with_a_colon_does_not_take_another_pictures_place(tmp_path, to):
    folder = write_coco(tmp_path / "raw", count=2)
    _named(folder, ["2.jpg", "shot 10:20.jpg"])
    prepare_here(options_for(folder, tmp_path / "set"))
    export_data(str(tmp_path / "set"), str(tmp_path / "out"), to=to)
    if to == "coco":
        listed = json.loads((tmp_path / "out" / "instances.json").read_text())["images"]
        names = {each["id"]: each["file_name"] for each in listed}
    else:
        lines = map(json.loads, (tmp_path / "out" / "ovd.jsonl").read_text().splitlines())
        names = {each["id"]: each["image"] for each in lines}
    for number, name in names.items():
        assert (tmp_path / "out" / "images" / name).read_bytes() == image_bytes(seed=number)


def test_linked_pictures_of_one_name_in_two_folders_are_both_there(tmp_path):
    folder = write_coco(tmp_path / "raw", count=2)
    for number, place in enumerate(("a", "b"), start=1):
        (folder / "images" / place).mkdir()
        (folder / "images" / f"{number:04d}.jpg").rename(folder / "images" / place / "x.jpg")
    content = json.loads((folder / "instances.json").read_text())
    for image, place in zip(content["images"], ("a", "b"), strict=True):
        image["file_name"] = f"{place}/x.jpg"
    (folder / "instances.json").write_text(json.dumps(content))
    prepare_here(options_for(folder, tmp_path / "set", images_mode="link"))
    export_data(str(tmp_path / "set"), str(tmp_path / "out"))
    for image in json.loads((tmp_path / "out" / "instances.json").read_text())["images"]:
        assert (tmp_path / "out" / "images" / image["file_name"]).read_bytes() == image_bytes(seed=image["id"])


def test_what_the_released_layout_cannot_hold_is_told_with_numbers(tmp_path, caplog):
    objects = [annotation(1, 1), annotation(2, 1, (3, 3, 2, 2)), annotation(3, 2)]
    folder = write_coco(tmp_path / "raw", count=2, annotations=objects)
    manifest = prepare_here(options_for(folder, tmp_path / "set"))
    assert manifest.counts.objects - manifest.counts.objects_with_patches == 1
    exported = run_export_data(str(tmp_path / "set"), str(tmp_path / "out"), to="released", images=False)
    assert any(each.startswith("1 of 3 objects have no foreground patch") for each in exported.lost)
    assert "1 of 3 objects have no foreground patch" in caplog.text
    lines = [json.loads(line) for line in (tmp_path / "out" / "ovd.jsonl").read_text().splitlines()]
    assert sum(len(line["objects"]) for line in lines) == 2


def test_coco_says_that_it_numbers_captions_anew(tmp_path):
    folder = write_coco(tmp_path / "raw", count=2)
    captions = [{"id": 1, "image_id": number, "caption": "A cat."} for number in (1, 2)]
    (folder / "captions.json").write_text(json.dumps({"annotations": captions}))
    prepare_here(options_for(folder, tmp_path / "set", captions=str(folder / "captions.json")))
    (said,) = export_data(str(tmp_path / "set"), str(tmp_path / "out"), images=False).lost
    assert "caption ids" in said
