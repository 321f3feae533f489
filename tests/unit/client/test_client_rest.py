"""The REST calls: which scheduler is asked, what is repeated, and what a person is told."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import pytest

from stoker.client.api import Client
from stoker.client.errors import ApiError, UrlError
from stoker.client.rest import Rest, parse_url
from support.clusters import Cluster
from support.ports import refusing_port


@pytest.fixture
def refused_url() -> Iterator[str]:
    with refusing_port() as port:
        yield f"http://127.0.0.1:{port}"


def error(code: str) -> dict[str, object]:
    return {"error": {"code": code, "message": f"because {code}", "hint": "do this"}}


def test_follows_a_redirect_to_the_leader_and_stays_there(cluster: Cluster) -> None:
    cluster.scheduler.answers = [(307, {"Location": f"{cluster.url}/v1/datasets"}, {})]
    rest = Rest((cluster.url,))
    assert rest.get("/v1/datasets") == {"datasets": []}


def test_asks_the_next_scheduler_when_one_refuses(cluster: Cluster, refused_url: str) -> None:
    rest = Rest((refused_url, cluster.url))
    assert rest.get("/v1/datasets") == {"datasets": []}
    assert rest._leader == cluster.url


@pytest.mark.parametrize("code", ["not_leading", "outcome_unknown"])
def test_repeats_with_the_same_key_until_a_leader_answers(cluster: Cluster, code: str) -> None:
    cluster.scheduler.answers = [(503, {}, error(code)), (503, {}, error(code)), (201, {}, {"id": "j1"})]
    assert Client(cluster.url).create_job("load", "ds") == {"id": "j1"}
    keys = {headers["Idempotency-Key"] for headers, _ in cluster.scheduler.bodies}
    assert len(cluster.scheduler.bodies) == 3 and len(keys) == 1


def test_a_dataset_is_changed_in_what_is_named_only(cluster: Cluster) -> None:
    cluster.scheduler.answers = [
        (503, {}, error("outcome_unknown")),
        (200, {}, {"name": "ds", "replicas": 2}),
    ]
    assert Client(cluster.url).change_dataset("ds", replicas=2, priority=0) == {"name": "ds", "replicas": 2}
    assert [body for _, body in cluster.scheduler.bodies] == [{"replicas": 2, "priority": 0}] * 2


def test_gives_up_after_its_patience(cluster: Cluster) -> None:
    cluster.scheduler.answers = [(503, {}, error("not_leading"))] * 50
    with pytest.raises(ApiError) as caught:
        Rest((cluster.url,)).get("/v1/leader", patience_ms=300)
    assert (caught.value.status, caught.value.code) == (503, "not_leading")
    assert str(caught.value) == "because not_leading (do this)"


def test_a_delete_whose_outcome_was_unknown_may_find_nothing_left(cluster: Cluster) -> None:
    cluster.scheduler.answers = [(503, {}, error("outcome_unknown")), (404, {}, error("not_found"))]
    assert Client(cluster.url).delete_dataset("ds") == {}


def test_a_refusal_is_an_error_with_code_and_hint_that_pickles(cluster: Cluster) -> None:
    cluster.scheduler.answers = [(409, {}, error("exists_differently"))]
    with pytest.raises(ApiError) as caught:
        Client(cluster.url).create_dataset("ds", "/data")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.status, again.code, again.hint) == (409, "exists_differently", "do this")


def test_nobody_there_is_said_at_once(refused_url: str) -> None:
    with pytest.raises(ApiError, match="no scheduler answers at .*is STOKER_URL"):
        Rest((refused_url,)).get("/v1/leader", patience_ms=200)


def test_an_answer_that_is_not_ours_is_said(cluster: Cluster) -> None:
    cluster.scheduler.answers = [(200, {}, b"<html>"), (502, {}, b"<html>")]
    for _ in range(2):
        with pytest.raises(ApiError, match="not JSON"):
            Rest((cluster.url,)).get("/v1/leader")


def test_the_token_goes_with_each_call_and_in_no_pickle(cluster: Cluster) -> None:
    client = Client(cluster.url, token="s3cret")
    client.datasets()
    assert cluster.scheduler.bodies[0][0]["Authorization"] == "Bearer s3cret"
    assert b"s3cret" not in pickle.dumps(client)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "host:5050",
        "ftp://a",
        "http://",
        "http://a,,b",
        "http://a:x",
        "http://a/path",
        "zk://a/stoker",
        "http://a:99999",
    ],
)
def test_refuses_what_is_no_url(url: str) -> None:
    with pytest.raises(UrlError, match="http://host:port"):
        parse_url(url)


def test_a_path_that_names_a_dataset_is_quoted(cluster: Cluster) -> None:
    with pytest.raises(ApiError):
        Client(cluster.url).dataset_info("../jobs")
    assert cluster.scheduler.calls == [("GET", "/v1/datasets/..%2Fjobs")]
