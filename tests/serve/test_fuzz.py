"""A few hundred requests that no client should send; ``python -m tests.serve.fuzz`` sends thousands to a real model."""

import pytest

pytest.importorskip("ray.serve")
pytest.importorskip("schemathesis")

from serve.settings import ServerArgs  # noqa: E402
from tests.serve.fake_engine import Answers  # noqa: E402
from tests.serve.in_process import listening, served  # noqa: E402


def test_nothing_that_is_sent_makes_the_server_fail() -> None:
    from tests.serve.fuzz import fuzz

    args = ServerArgs(max_patches=64, max_new_tokens=16, body_timeout_s=2.0, max_body_mb=0.5)
    with listening(served(Answers(), args)) as url:
        report = fuzz(url, 300)
    assert not report.problems, "\n".join(report.problems[:10])
    assert report.sent.total() > 250
    # What is good among them is answered.
    assert report.statuses[200] > 40 and report.statuses[422] > 20 and report.statuses[400] > 20
