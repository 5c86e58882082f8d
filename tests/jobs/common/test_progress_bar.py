"""Progress where there is no terminal: a log file is not flooded, and says how much is left."""

from jobs.common import progress_bar as bars


def test_lines_come_every_few_seconds_and_at_the_end(monkeypatch, caplog):
    clock = [0.0]
    monkeypatch.setattr(bars.time, "monotonic", lambda: clock[0])
    caplog.set_level("INFO", logger="jobs")
    with bars.counting("runs/coco", 1000, "images") as advance:
        for _ in range(100):
            clock[0] += 0.125
            advance(10)
    assert caplog.messages == [
        "runs/coco: 400 of 1,000 images, 80.0/s, 0:08 left",
        "runs/coco: 800 of 1,000 images, 80.0/s, 0:02 left",
        "runs/coco: 1,000 of 1,000 images, 80.0/s, 0:00 left",
    ]


def test_nothing_is_said_where_it_is_not_wanted(caplog):
    caplog.set_level("INFO", logger="jobs")
    with bars.counting("runs/coco", 1, "images", show=False) as advance:
        advance(1)
    assert not caplog.messages
