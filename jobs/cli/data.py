"""Verbs that work on prepared sets: a look inside, lists of images to leave out, and the way back to other formats."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.cli.verb import examples
from jobs.common import console

if TYPE_CHECKING:
    from pipelines.dataset.rejects import LeftOut
    from pipelines.inspection.statistics import Section

app = typer.Typer()

_BAR = 30


@app.command(
    **examples(
        "padt inspect runs/demo/prepare/val",
        "padt inspect runs/coco-val --key 139 --out one.png",
        "padt inspect runs/coco-train --against runs/refcoco-val",
    )
)
def inspect(
    data: Annotated[str, typer.Argument(help="Prepared set; any URL.")],
    key: Annotated[str | None, typer.Option(help="Show this image (key or image id), or why it was left out.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Rows to show.")] = 4,
    out: Annotated[str, typer.Option("--out", "-o", help="Picture to write, or a folder for it.")] = "runs/inspect/",
    against: Annotated[
        list[str] | None,
        typer.Option(metavar="SET[:SPLIT]", help="Say what it shares with this prepared set; repeatable."),
    ] = None,
) -> None:
    """Look into a prepared set: counts, rejects, histograms, and a picture with patch grid, boxes and masks."""
    from pipelines.inspection.inspect import inspect as look

    report = look(data, key, count, out, against or ())
    if key is None:
        for said in report.alarms:
            console.out.print(said)
        console.out.print(console.table(data, ["what", "value"], report.facts))
        for section in report.sections:
            if section.rows:
                _print_section(section)
    else:
        for row in report.rows:
            _print_row(row)
        _print_left_out(report.left_out)
    for overlap in report.overlaps:
        console.out.print(f"{data} {overlap.finding}")
        for pair in overlap.examples:
            console.out.print(f"  {pair[0]} = {pair[1]}")
    if report.picture_path:
        console.out.print(f"picture: {report.picture_path}")
    else:
        console.out.print("no picture: the set does not hold the image")


def _print_section(section: "Section") -> None:
    numeric = [isinstance(value, int) for value in section.rows[0]]
    columns = [f"{name}>" if right else name for name, right in zip(section.columns, numeric, strict=True)]
    rows: list[tuple[Any, ...]] = list(section.rows)
    if section.bars:
        peak = max(row[-1] for row in rows) or 1
        columns.append("")
        rows = [(*row, "█" * round(_BAR * row[-1] / peak)) for row in rows]
    console.out.print(console.table(section.title, columns, rows))
    if section.note:
        console.out.print(section.note)


def _print_row(row: dict[str, Any]) -> None:
    facts = [
        ("image", row["image"] and row["image"]["path"]),
        ("size", f"{row['width']} x {row['height']}, {row['grid_h']} x {row['grid_w']} patches (rows x columns)"),
        ("sha256", row.get("sha256")),
    ]
    console.out.print(console.table(row["key"], ["what", "value"], [fact for fact in facts if fact[1]]))
    objects = [
        (place, str(item["ann_id"]), item["label"], _pixels(item["box"], row), float(item["area"]), item["iscrowd"])
        for place, item in enumerate(row["objects"])
    ]
    if objects:
        columns = ["place>", "annotation>", "label", "box (xyxy, pixels)", "area>", "crowd"]
        console.out.print(console.table("Objects", columns, objects))
    said = [("reference", item["text"], str(item["objects"])) for item in row["references"]]
    said += [("caption", item["text"], str(item["objects"])) for item in row["captions"]]
    said += [(item["role"], item["content"], "") for item in row.get("messages") or ()]
    if said:
        console.out.print(console.table("Sentences", ["kind", "text", "objects"], said))


def _pixels(box: list[float], row: dict[str, Any]) -> str:
    sides = (row["width"], row["height"]) * 2
    return ", ".join(f"{part * side:.1f}" for part, side in zip(box, sides, strict=True))


def _print_left_out(left_out: "list[LeftOut]") -> None:
    if left_out:
        from pipelines.dataset.rejects import REASONS

        rows = [(each.what, each.reason, REASONS.get(each.reason, ""), each.detail) for each in left_out]
        title = f"Left out of {left_out[0].key}"
        console.out.print(console.table(title, ["what", "reason", "meaning", "detail"], rows))


@app.command(
    name="exclude-list",
    **examples(
        "padt exclude-list runs/refcoco-val runs/refcoco-testA runs/refcocog-test --out refcoco-eval.json",
        "padt prepare coco -a instances_train2017.json -i train2017 -o runs/coco-train --exclude refcoco-eval.json",
    ),
)
def exclude_list(
    sets: Annotated[list[str], typer.Argument(metavar="SET[:SPLIT]...", help="Prepared sets; any URL.")],
    out: Annotated[str, typer.Option("--out", "-o", help="File to write: NAME.json.")],
) -> None:
    """Write the images of prepared evaluation sets as a list that `padt prepare --exclude` takes."""
    from pipelines.dedup.exclude import write_exclude_list

    listed = write_exclude_list(sets, out)
    rows = [[each.name, each.url, each.images] for each in listed]
    console.out.print(console.table(out, ["set", "where", "images>"], rows))


@app.command(
    name="export-data",
    **examples(
        "padt export-data runs/coco-val --to coco --out exported",
        "padt export-data s3://bucket/refcoco-val --to released --out lines --no-images",
    ),
)
def export_data(
    data: Annotated[str, typer.Argument(help="Prepared set; any URL.")],
    out: Annotated[str, typer.Option("--out", "-o", help="Folder to make; any URL.")],
    to: Annotated[
        str, typer.Option(help="coco (JSON, with captions and references) or released (JSON lines).")
    ] = "coco",
    images: Annotated[bool, typer.Option(help="Write the pictures too, or only name them.")] = True,
) -> None:
    """Write a prepared set in the format of other tools; `padt prepare` reads it back."""
    from jobs.data.export import run_export_data

    exported = run_export_data(data, out, to=to, images=images)
    console.out.print(console.table(out, ["file", "entries>"], list(exported.files.items())))
