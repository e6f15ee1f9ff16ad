"""Sets of objects: made, repaired, pruned, removed, and predicted in check mode."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from ansible.module_utils.slipway import objects
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.kube import Json
from ansible.module_utils.slipway.objects import ObjectSet, covers, namespace_object

from .fakes import FakeObjects

RECORD = "/api/v1/namespaces/shop/configmaps/slipway-page"


def config(name: str, **data: str) -> Json:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def run(api: FakeObjects, wanted: list[Json], check: bool = False) -> Any:
    return ObjectSet(api, "page", "shop", check).apply(wanted)


def test_made_once_and_then_unchanged() -> None:
    api = FakeObjects()
    first = run(api, [config("a", k="v"), config("b", k="v")])
    assert [str(each) for each in first.created] == ["ConfigMap shop/a", "ConfigMap shop/b"]
    assert api.objects["/api/v1/namespaces/shop/configmaps/a"]["metadata"]["namespace"] == "shop"
    again = run(api, [config("a", k="v"), config("b", k="v")])
    assert not again
    assert again.diff == []


def test_a_change_by_hand_is_undone() -> None:
    api = FakeObjects()
    run(api, [config("a", k="v")])
    api.objects["/api/v1/namespaces/shop/configmaps/a"]["data"]["k"] = "by hand"
    changes = run(api, [config("a", k="v")])
    assert [str(each) for each in changes.changed] == ["ConfigMap shop/a"]
    assert '"by hand"' in changes.diff[0]["before"]
    assert api.objects["/api/v1/namespaces/shop/configmaps/a"]["data"] == {"k": "v"}


def test_what_is_not_listed_any_more_goes_but_never_data() -> None:
    api = FakeObjects()
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data"}}
    run(api, [config("a"), config("b"), claim])
    changes = run(api, [config("a")])
    assert [str(each) for each in changes.removed] == ["ConfigMap shop/b"]
    assert api.deleted == ["/api/v1/namespaces/shop/configmaps/b"]
    assert "/api/v1/namespaces/shop/persistentvolumeclaims/data" in api.objects


def test_an_interrupted_run_forgets_nothing() -> None:
    api = FakeObjects()
    api.refuse = "configmaps/b"
    with pytest.raises(SlipwayError, match="ConfigMap shop/b: PATCH"):
        run(api, [config("a"), config("b")])
    api.refuse = ""
    assert [str(each) for each in run(api, [config("c")]).removed] == ["ConfigMap shop/a"]


def test_check_mode_predicts_and_writes_nothing() -> None:
    api = FakeObjects()
    run(api, [config("a", k="v"), config("b")])
    writes, before = list(api.writes), copy.deepcopy(api.objects)
    changes = run(api, [config("a", k="w"), config("c")], check=True)
    names = [[str(each) for each in group] for group in (changes.created, changes.changed, changes.removed)]
    assert names == [["ConfigMap shop/c"], ["ConfigMap shop/a"], ["ConfigMap shop/b"]]
    assert (api.writes, api.objects, api.deleted) == (writes, before, [])


def test_the_namespace_comes_before_the_record_that_lies_in_it() -> None:
    api = FakeObjects()
    run(api, [config("a"), {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}])
    assert api.writes[:2] == ["/api/v1/namespaces/shop", RECORD]


def test_contents_of_secrets_are_not_in_the_diff() -> None:
    api = FakeObjects()
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"k": "hunter2"}}
    assert "hunter2" not in str(run(api, [secret]).diff)


def test_removal_takes_everything_but_data_and_works_twice() -> None:
    api = FakeObjects()
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data"}}
    run(api, [config("a"), claim])
    assert [str(each) for each in ObjectSet(api, "page", "shop").remove().removed] == ["ConfigMap shop/a"]
    assert RECORD not in api.objects
    assert not ObjectSet(api, "page", "shop").remove()


def test_a_kind_that_nobody_serves_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "ESTABLISHED", 0.1)
    odd = {"apiVersion": "example.org/v1", "kind": "Thing", "metadata": {"name": "t"}}
    with pytest.raises(SlipwayError, match=r"Thing shop/t: the API does not serve example\.org/v1 Thing"):
        run(FakeObjects(), [odd])


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ([{"kind": "ConfigMap"}], "has no apiVersion"),
        ([{"apiVersion": "v1", "kind": "ConfigMap"}], r"has no metadata\.name"),
        ([config("a"), config("a")], "given twice: ConfigMap shop/a"),
    ],
)
def test_wrong_sets_are_refused_before_anything_is_made(wanted: list[Json], message: str) -> None:
    api = FakeObjects()
    with pytest.raises(SlipwayError, match=message):
        run(api, wanted)
    assert api.writes == []


def test_a_broken_record_is_named() -> None:
    api = FakeObjects()
    api.objects[RECORD] = {"metadata": {"name": "slipway-page"}, "data": {"objects": "{"}}
    with pytest.raises(SlipwayError, match="ConfigMap shop/slipway-page cannot be read"):
        run(api, [config("a")])


def test_missing_namespaces_are_made_and_others_left_alone() -> None:
    api = FakeObjects()
    other = "/api/v1/namespaces/other"
    api.objects[other] = {"metadata": {"name": "other", "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    members = ObjectSet(api, "quotas", "shop")
    members.make_namespaces(["other", "new"])
    assert [str(each) for each in members.changes.created] == ["Namespace new"]
    assert api.writes == ["/api/v1/namespaces/new"]


def test_what_is_as_it_was_applied_is_not_sent_again() -> None:
    api = FakeObjects()
    run(api, [config("a", k="v", gone="x")])
    writes = len(api.writes)
    run(api, [config("a", k="v", gone="x")])
    assert len(api.writes) == writes
    # All of it is there, but a field is to go.
    run(api, [config("a", k="v")])
    assert api.objects["/api/v1/namespaces/shop/configmaps/a"]["data"] == {"k": "v"}


def test_words_are_compared_not_order_of_keys() -> None:
    assert covers({"a": [{"b": 1, "c": 2}], "d": 3}, {"a": [{"b": 1}]})
    assert not covers({"a": [{"b": 1}, {"b": 2}]}, {"a": [{"b": 1}]})
    assert not covers({"a": None}, {"a": {}})


def test_a_namespace_has_its_level_and_further_labels() -> None:
    labels = namespace_object("shop", "baseline", {"slipway/submits-runs": "true"})["metadata"]["labels"]
    level = "pod-security.kubernetes.io"
    assert (
        labels.items()
        >= {
            f"{level}/enforce": "baseline",
            f"{level}/warn": "restricted",
            "slipway/submits-runs": "true",
            "app.kubernetes.io/managed-by": "slipway",
        }.items()
    )
    assert namespace_object("shop", "restricted")["metadata"]["labels"][f"{level}/warn"] == "restricted"
