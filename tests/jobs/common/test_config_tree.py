"""Configuration trees as flat keys: what MLflow shows, and what a refused run is told to set back."""

from jobs.common.config_tree import differences, flatten


def test_flatten_makes_dotted_names():
    assert flatten({"a": {"b": 1}, "c": [{"d": 2}, {"d": 3}], "e": [1, 2]}) == {
        "a.b": 1,
        "c.0.d": 2,
        "c.1.d": 3,
        "e": [1, 2],
    }


def test_differences_name_each_key_with_both_values():
    old = {"optimizer": {"lr": 1.0, "eps": 2}, "sets": [{"url": "a"}], "freeze": []}
    new = {"optimizer": {"lr": 0.5, "eps": 2}, "sets": [{"url": "a"}, {"url": "b"}], "freeze": ["vision"]}
    assert differences(old, new) == [
        "optimizer.lr: 1.0 -> 0.5",
        "freeze: [] -> ['vision']",
        "sets.1.url: None -> 'b'",
    ]
    assert differences(new, new) == []
