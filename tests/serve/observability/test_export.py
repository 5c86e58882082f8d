"""What ``/metrics`` prints: all that the table has, of all nodes; and the dashboard asks for nothing else."""

import asyncio
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("ray.serve")

from serve.observability import scrape  # noqa: E402
from serve.observability.metrics import METRICS, PREFIX, Meters  # noqa: E402
from serve.observability.scrape import ClusterMetrics, merged  # noqa: E402
from tests.conftest import REPOSITORY  # noqa: E402

DASHBOARD = json.loads((REPOSITORY / "serve/observability/dashboard.json").read_text())
_SELECTOR = re.compile(r"(ray_\w+)(?:\{([^}]*)\})?")


def queries() -> Iterator[tuple[str, str]]:
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["query"]["query"]


def asked_for(expression: str) -> Iterator[tuple[str, set[str]]]:
    """Each metric of a PromQL expression with the labels that it is picked and grouped by."""
    by = {label.strip() for group in re.findall(r"\bby \(([^)]*)\)", expression) for label in group.split(",")}
    if found := re.fullmatch(r"label_values\((\w+), (\w+)\)", expression):
        yield found[1], {found[2]}
        return
    for name, selector in _SELECTOR.findall(expression):
        picked = set(re.findall(r'(\w+)(?:=~|!~|!=|=)"', selector))
        # A grouping belongs to the expression's one metric; `le` to its buckets.
        yield name, picked | by


def printed(text: str) -> dict[str, set[str]]:
    """Labels of each sample's name."""
    found: dict[str, set[str]] = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, _, rest = line.partition("{")
            found.setdefault(name, set()).update(re.findall(r'(\w+)="', rest))
    return found


@pytest.fixture(scope="module")
def exposition(ray_cluster: None) -> str:
    """What an ingress answers after everything in the table was counted once."""
    meters = Meters()
    for metric in METRICS.values():
        meters.add(metric.name, 2.0, **dict.fromkeys(metric.labels, "there"))
    cluster = ClusterMetrics()
    deadline = time.monotonic() + 60
    while True:
        text = asyncio.run(cluster.text())
        if {f"{PREFIX}{name}" for name in METRICS} <= set(re.findall(r"^# TYPE (\w+)", text, re.MULTILINE)):
            return text
        assert time.monotonic() < deadline, f"Ray has exported only this: {text}"
        time.sleep(1.5)


def test_all_metrics_are_printed_with_their_kind_help_and_labels(exposition: str) -> None:
    samples = printed(exposition)
    for metric in METRICS.values():
        name = f"{PREFIX}{metric.name}"
        assert f"# TYPE {name} {metric.kind}\n" in exposition
        assert f"# HELP {name} {metric.help}\n" in exposition
        for suffix in ("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",):
            assert set(metric.labels) <= samples[name + suffix], name
    assert all(name.startswith(scrape.FAMILY) for name in samples)


def test_prometheus_reads_it(exposition: str) -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    families = {family.name: family for family in parser.text_string_to_metric_families(exposition)}
    (sample,) = (each for each in families["ray_padt_requests"].samples if each.labels["task"] == "there")
    assert sample.value == 2.0
    ours = [each for each in families["ray_padt_step_rows"].samples if each.labels["version"] == "there"]
    assert [each.value for each in ours if each.name.endswith("_bucket")][:3] == [0, 1, 1]


def test_every_query_of_the_dashboard_finds_what_it_asks_for(exposition: str) -> None:
    samples, checked = printed(exposition), set()
    for title, expression in queries():
        found = list(asked_for(expression))
        assert found, title
        for name, labels in found:
            assert name in samples, f"{title}: {name} is not printed"
            assert labels <= samples[name], f"{title}: {name} has no {labels - samples[name]}"
            checked.add(re.sub(r"_(bucket|sum|count)$", "", name).removeprefix(PREFIX))
    assert checked == set(METRICS), "the dashboard shows every metric"


@pytest.mark.parametrize(
    "wrong", ["ray_padt_requests", 'ray_padt_requests_total{stage="x"}', "sum by (le) (ray_padt_running_rows)"]
)
def test_a_wrong_query_would_be_found(exposition: str, wrong: str) -> None:
    samples = printed(exposition)
    assert any(name not in samples or not labels <= samples[name] for name, labels in asked_for(wrong))


def test_several_nodes_are_printed_as_one_and_only_what_is_ours() -> None:
    def text(node: str) -> str:
        return (
            "# HELP ray_other_total Others.\n# TYPE ray_other_total counter\nray_other_total 1\n"
            "# HELP ray_padt_objects_total Objects.\n# TYPE ray_padt_objects_total counter\n"
            f'ray_padt_objects_total{{node="{node}"}} 1\n'
            "# HELP ray_zebra Last.\n# TYPE ray_zebra gauge\nray_zebra 3\n"
        )

    assert merged([text("a"), "", text("b")]).splitlines() == [
        "# HELP ray_padt_objects_total Objects.",
        "# TYPE ray_padt_objects_total counter",
        'ray_padt_objects_total{node="a"} 1',
        'ray_padt_objects_total{node="b"} 1',
    ]


def test_a_node_that_does_not_answer_leaves_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    there = tmp_path / "metrics"
    there.write_text(
        "# HELP ray_padt_objects_total O.\n# TYPE ray_padt_objects_total counter\nray_padt_objects_total 1\n"
    )
    monkeypatch.setattr(scrape, "exporters", lambda: ["http://127.0.0.1:9/metrics", there.as_uri()])
    assert asyncio.run(ClusterMetrics().text()).endswith("ray_padt_objects_total 1\n")
