"""The HTTP service returns what `Recommender` does, and survives any request."""

import asyncio
import base64
import dataclasses
import json
import shutil
import threading
import time

import httpx
import numpy as np
import pytest

from srgnn_jax.errors import UserError
from srgnn_jax.serve import step
from srgnn_jax.serve.batching import Batcher, Overloaded
from srgnn_jax.serve.bodies import Limits
from srgnn_jax.serve.http import App
from srgnn_jax.serve.promote import _switch, promote
from srgnn_jax.serve.recommend import Recommender
from srgnn_jax.serve.served import Served
from srgnn_jax.serve.service import Service
from srgnn_jax.train.loop import train_and_evaluate
from tests.fuzz_http import draw_body
from tests.served import Client, few_shapes, ready_service
from tests.tiny import old_run, tiny_config

TOKEN = "0123456789abcdef"
LIMITS = Limits(body=20_000, sessions=8, clicks=40, candidates=15, k=10, seconds=0.2)
SESSIONS = [
    ["item3", "item4", "nope", "item4"],
    [],
    ["nope", "nope", "item 8"],
    [" item5 "],
    *([f"item{n % 20}" for n in range(length)] for length in (1, 5, 17, 70, 300)),
]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return old_run(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def recommender(workdir):
    return Recommender.load(workdir)


@pytest.fixture(scope="module")
def _service(workdir):
    return ready_service(workdir)


@pytest.fixture
def service(_service):
    """The service; a test's changes to the model and its names are undone."""
    before = _service.served
    yield _service
    _service.served = before
    _service._ids.clear()


@pytest.fixture
def client(service):
    return Client(App(service))


def post(client, **body):
    return client.post("/v1/recommend", json=body)


def check_equal(answer, expected):
    assert answer["items"] == expected.items
    np.testing.assert_allclose(answer["scores"], expected.scores, atol=1e-5)
    assert answer["unknown"] == expected.unknown
    assert answer["fallback"] == expected.fallback


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"k": 3},
        {"exclude_seen": True},
        {"k": 2, "exclude_seen": True},
        {"as_probabilities": True},
        {"candidates": ["item7", "item3", "item12", "nope"]},
        {
            "candidates": ["item7", "item3"],
            "exclude_seen": True,
            "as_probabilities": True,
        },
    ],
)
def test_answers_equal_recommend(client, recommender, service, options):
    expected = recommender.recommend(SESSIONS, **options)
    answer = post(client, sessions=SESSIONS, **options).json()
    assert answer["model"] == service.served.identity
    for got, one in zip(answer["recommendations"], expected, strict=True):
        check_equal(got, one)
    alone = post(client, session=SESSIONS[0], **options).json()
    assert alone.pop("model")["step"] == 14
    check_equal(alone, expected[0])


def together(app, bodies):
    """Sends requests at the same time; returns their answers."""
    sent = ((("POST", "/v1/recommend"), {"json": body}) for body in bodies)
    return Client(app).together(*sent)


def test_what_comes_together_is_answered_together_and_changes_no_answer(
    service, recommender
):
    app = App(service)
    sizes = []
    service.batcher.on_batch = lambda size, seconds: sizes.append(size)
    sessions = [[f"item{n % 20}", f"item{7 * n % 19}"] for n in range(30)]
    bodies = [
        {"session": session, "k": 3 + n % 4, "exclude_seen": n % 2 == 0}
        for n, session in enumerate(sessions)
    ]
    answers = together(app, bodies)
    for body, answer in zip(bodies, answers, strict=True):
        session = body.pop("session")
        check_equal(answer.json(), *recommender.recommend([session], **body))
    assert sum(sizes) == 30
    assert max(sizes) == service.batcher.max_size == 4
    assert len(sizes) < 15


def test_nothing_is_compiled_once_it_is_ready(client, service):
    service.keep_now = client.put(
        "/v1/candidates/some", json={"items": ["item1", "item2", "item3"]}
    )
    before = step.shared._cache_size(), step.click_weights._cache_size()
    for candidates in (None, "some", ["item4", "item5"]):
        for as_probabilities in (False, True):
            for k in (1, 20, 100):
                body = {"k": k, "as_probabilities": as_probabilities}
                body |= {"candidates": candidates, "exclude_seen": k == 20}
                for some in (SESSIONS, SESSIONS[:1], SESSIONS[-3:-1]):
                    assert post(client, sessions=some, **body).status_code == 200
    for session in SESSIONS[3:]:
        client.post("/v1/explain", json={"session": session})
    assert (step.shared._cache_size(), step.click_weights._cache_size()) == before


def test_explain(client, recommender):
    answer = client.post("/v1/explain", json={"session": SESSIONS[0]}).json()
    expected = recommender.explain(SESSIONS[0])
    assert answer["items"] == expected.items
    assert answer["unknown"] == ["nope"]
    assert answer["edges"] == [list(edge) for edge in expected.edges]
    np.testing.assert_allclose(answer["attention"], expected.attention, atol=1e-5)
    none = client.post("/v1/explain", json={"session": ["nope"]})
    assert (none.status_code, none.json()["error"]["place"]) == (422, "session")


@pytest.mark.parametrize(
    ("body", "status", "place"),
    [
        (b"", 400, "body"),
        (b"{", 400, "body"),
        (b"\xff", 400, "body"),
        (b"[" * 5000, 400, "body"),
        (b'{"session": NaN}', 400, "body"),
        ([], 400, "body"),
        ({}, 422, "body"),
        ({"session": [], "sessions": []}, 422, "body"),
        ({"session": "item3"}, 422, "session"),
        ({"session": {"item3": 1}}, 422, "session"),
        ({"session": ["item3", True]}, 422, "session[1]"),
        ({"session": ["item3", None]}, 422, "session[1]"),
        ({"session": ["item3", 1.5]}, 422, "session[1]"),
        ({"session": ["item3", ["item3"]]}, 422, "session[1]"),
        ({"session": [10**30]}, 422, "session[0]"),
        ({"session": ["x"] * 41}, 422, "session"),
        ({"sessions": 3}, 422, "sessions"),
        ({"sessions": [["a"], "b"]}, 422, "sessions[1]"),
        ({"sessions": [["a"], ["b", {}]]}, 422, "sessions[1][1]"),
        ({"sessions": [[]] * 9}, 422, "sessions"),
        ({"session": [], "k": 0}, 422, "k"),
        ({"session": [], "k": 11}, 422, "k"),
        ({"session": [], "k": True}, 422, "k"),
        ({"session": [], "k": "3"}, 422, "k"),
        ({"session": [], "exclude_seen": 1}, 422, "exclude_seen"),
        ({"session": [], "as_probabilities": "yes"}, 422, "as_probabilities"),
        ({"session": [], "candidates": "nope"}, 422, "candidates"),
        ({"session": [], "candidates": ["nope"]}, 422, "candidates"),
        ({"session": [], "candidates": []}, 422, "candidates"),
        ({"session": [], "candidates": ["a"] * 16}, 422, "candidates"),
        ({"session": [], "candidates": [None]}, 422, "candidates[0]"),
        ({"session": [], "exclude_sen": True}, 422, "exclude_sen"),
        ({"session": ["x" * 30_000]}, 413, "body"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(service, body, status, place):
    client = Client(App(service, limits=LIMITS))
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = client.post("/v1/recommend", content=content)
    assert answer.status_code == status
    assert answer.json()["error"]["place"] == place
    assert answer.json()["error"]["reason"]


def test_limits_hold_to_the_last_one(service):
    client = Client(App(service, limits=LIMITS))
    body = {"sessions": [["item3"] * 40] * 8, "k": 10, "candidates": ["item3"] * 15}
    assert post(client, **body).status_code == 200


def test_broken_requests_are_refused_and_nothing_fails(client):
    rng = np.random.default_rng(0)
    counts = dict.fromkeys((200, 400, 422), 0)
    for _ in range(200):
        path = rng.choice(["/v1/recommend", "/v1/recommend", "/v1/explain"])
        answer = client.post(str(path), content=draw_body(rng))
        counts[answer.status_code] += 1
        if answer.status_code != 200:
            assert answer.json()["error"].keys() == {"place", "reason"}
            assert "Traceback" not in answer.text
            assert "srgnn_jax" not in answer.text
    assert min(counts.values()) > 10
    assert post(client, session=["item3"]).status_code == 200


def test_what_fails_inside_tells_nothing(client, service, monkeypatch, caplog):
    monkeypatch.setattr(service.batcher, "check", lambda: 1 / 0)
    answer = post(client, session=[])
    assert answer.status_code == 500
    assert "ZeroDivision" not in answer.text
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("path", ["/", "/metrics", "/v1/items", "/v2/models/srgnn"])
def test_all_but_health_needs_the_token(service, path):
    client = Client(App(service, token=TOKEN), "10.1.2.3")
    assert client.get("/v2/health/live").status_code == 200
    assert client.get("/v2/health/ready").json() == {"ready": True}
    basic = base64.b64encode(f"me:{TOKEN}".encode()).decode()
    for given, status in [
        ("", 401),
        ("Bearer", 401),
        (f"Bearer {TOKEN}x", 401),
        (f"Basic {TOKEN}", 401),
        ("Basic !", 401),
        (f"Bearer {TOKEN}", 200),
        (f"Basic {basic}", 200),
    ]:
        answer = client.get(path, headers={"Authorization": given})
        assert answer.status_code == status, given
    assert post(client, session=[]).status_code == 401
    items = {"items": ["item1"]}
    headers = {"Authorization": f"Bearer {TOKEN}"}
    kept = client.put("/v1/candidates/one", json=items, headers=headers)
    assert kept.status_code == 200


def test_without_a_token_only_this_machine_may_write(service, client):
    items = {"items": ["item1"]}
    away = Client(App(service), "10.1.2.3")
    assert post(away, session=[]).status_code == 200
    for method, path in [
        ("PUT", "/v1/candidates/one"),
        ("DELETE", "/v1/candidates/one"),
        ("POST", "/v1/reload"),
    ]:
        assert away.request(method, path, json=items).status_code == 403
        origin = {"Origin": "http://evil.example"}
        answer = client.request(method, path, json=items, headers=origin)
        assert answer.status_code == 403
    assert client.put("/v1/candidates/one", json=items).status_code == 200
    one_of_many = Client(App(service, is_one_of_many=True))
    assert one_of_many.put("/v1/candidates/one", json=items).status_code == 403
    assert post(one_of_many, session=[]).status_code == 200


def test_named_candidates_are_kept_and_restrict(workdir, tmp_path, recommender):
    service = ready_service(workdir, candidates_folder=tmp_path / "kept")
    client = Client(App(service))
    ids = ["item7", "item3", "item12", "nope"]
    answer = client.put("/v1/candidates/in-stock", json={"items": ids})
    assert answer.json() == {"items": 3, "unknown": ["nope"]}
    body = {"session": ["item3", "item4"], "candidates": "in-stock"}
    (expected,) = recommender.recommend([body["session"]], candidates=ids)
    check_equal(post(client, **body).json(), expected)

    again = Client(App(ready_service(workdir, candidates_folder=tmp_path / "kept")))
    assert again.get("/v1/candidates").json() == {"candidates": {"in-stock": 3}}
    check_equal(post(again, **body).json(), expected)
    assert again.delete("/v1/candidates/in-stock").status_code == 200
    assert post(again, **body).status_code == 422
    assert again.delete("/v1/candidates/in-stock").status_code == 404
    assert not list((tmp_path / "kept").iterdir())


def test_candidates_that_cannot_be_named_are_refused(client, service):
    for name, ids, place in [
        ("..%2f..%2fx", ["item1"], "request"),
        (".hidden", ["item1"], "name"),
        ("a" * 65, ["item1"], "name"),
        ("a", ["nope"], "items"),
        ("a", "item1", "items"),
        ("a", [None], "items[0]"),
    ]:
        answer = client.put(f"/v1/candidates/{name}", json={"items": ids})
        assert answer.json()["error"]["place"] == place
    assert service.names() == {}


def test_a_damaged_folder_of_candidates_is_told(workdir, tmp_path):
    for text in ("[", "{}", '{"items": 5}', '{"items": "item3"}', '{"items": [null]}'):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(UserError, match=r"cannot read the candidates in .*x\.json"):
            Service(lambda: None, candidates_folder=tmp_path)


class Models:
    """Returns one model after another, waiting while `may_go_on` is not set."""

    def __init__(self, *models):
        self.models = iter(models)
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def __call__(self, only_newest=False):
        assert self.may_go_on.wait(20)
        model = next(self.models)
        if isinstance(model, Exception):
            raise model
        return model


def other_model(recommender, factor):
    """Returns a model with other parameters, as if loaded."""
    params = {**recommender.params}
    params["item_embedding"] = params["item_embedding"] * factor
    made = Recommender(
        recommender.model, params, recommender.vocabulary, share_code=True
    )
    made.step = 15
    return made


@pytest.mark.slow
def test_a_new_model_is_used_once_it_is_ready_and_no_request_fails(recommender):
    new = other_model(recommender, -1.0)
    models = Models(recommender, new)
    with few_shapes():
        service = Service(models)
        service.prepare()
        app = App(service)
        compiled = step.shared._cache_size()

        async def run():
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(
                transport=transport, base_url="http://x"
            ) as http:
                models.may_go_on.clear()
                body = {"session": ["item3"], "candidates": "some"}
                put = await http.put(
                    "/v1/candidates/some", json={"items": ["item1", "item2", "item5"]}
                )
                assert put.status_code == 200
                reloading = asyncio.ensure_future(http.post("/v1/reload"))
                answers = []
                while not reloading.done():
                    answers.append(await http.post("/v1/recommend", json=body))
                    if len(answers) == 5:
                        models.may_go_on.set()
                answers.append(await http.post("/v1/recommend", json=body))
                return answers, await reloading, await http.get("/metrics")

        answers, reloaded, metrics = asyncio.run(run())
    assert {one.status_code for one in answers} == {200}
    steps = [one.json()["model"]["step"] for one in answers]
    assert steps == sorted(steps)
    assert (steps[0], steps[-1]) == (recommender.step, 15)
    assert reloaded.json()["model"] == answers[-1].json()["model"]
    assert answers[0].json()["model"]["fingerprint"] != reloaded.json()["model"]
    ids = ["item1", "item2", "item5"]
    (expected,) = new.recommend([["item3"]], candidates=ids)
    check_equal(answers[-1].json(), expected)
    assert 'srgnn_reloads_total{result="loaded"} 1.0' in metrics.text
    assert 'step="15"' in metrics.text
    # An equal model, and a restriction of the same size, use the same compiled code.
    assert step.shared._cache_size() - compiled < 20


def test_a_model_that_cannot_be_used_is_refused(recommender, caplog):
    class NotFinite:
        def __init__(self):
            other_model(recommender, np.nan)

    def load(only_newest=False):
        if not used:
            used.append(1)
            return recommender
        return failures.pop()()

    used = []
    failures = [NotFinite, lambda: (_ for _ in ()).throw(UserError("/a/path damaged"))]
    with few_shapes():
        service = Service(load)
        service.prepare()
    client = Client(App(service))
    for why in ("damaged", "holds NaN"):
        answer = client.post("/v1/reload")
        assert answer.status_code == 409
        assert "/a/path" not in answer.text
        assert why in caplog.text
        after = post(client, session=["item3"])
        assert after.json()["model"]["step"] == recommender.step
    assert 'result="refused"} 2.0' in client.get("/metrics").text


@pytest.mark.slow
def test_a_damaged_checkpoint_is_refused(tmp_path):
    workdir = old_run(tmp_path)
    client = Client(App(ready_service(workdir)))
    assert client.post("/v1/reload").status_code == 200
    for path in (workdir / "checkpoints").glob("*/state/**/*"):
        if path.is_file():
            path.write_bytes(b"damaged")
    assert client.post("/v1/reload").status_code == 409
    assert post(client, session=["item3"]).status_code == 200


def test_a_link_that_is_switched_is_seen(recommender, tmp_path):
    for day in ("monday", "tuesday"):
        (tmp_path / day / "checkpoints" / "14").mkdir(parents=True)
    live = tmp_path / "live"
    _switch(live, tmp_path / "monday")
    with few_shapes():
        service = Service(lambda **_: recommender, workdir=live)
    before = service._checkpoints()
    _switch(live, tmp_path / "monday")
    assert service._checkpoints() == before
    _switch(live, tmp_path / "tuesday")
    assert service._checkpoints() not in (before, set())


def test_a_change_of_checkpoints_is_seen_and_what_is_refused_is_tried_again(
    recommender, tmp_path
):
    (tmp_path / "checkpoints" / "14").mkdir(parents=True)
    models = Models(recommender, UserError("unfinished"), other_model(recommender, 2.0))
    with few_shapes():
        service = Service(models, workdir=tmp_path)

        async def run():
            # One that is saved while the service starts is newer, too.
            (tmp_path / "checkpoints" / "15").mkdir()
            watching = asyncio.ensure_future(service.watch(0.01))
            for _ in range(500):
                await asyncio.sleep(0.02)
                if service.served.identity["step"] == 15:
                    break
            (tmp_path / "checkpoints" / "16.tmp").mkdir()
            await asyncio.sleep(0.1)
            assert not watching.done()
            watching.cancel()

        asyncio.run(run())
    assert service.served.identity["step"] == 15
    # The last one was loaded, and nothing after it.
    assert next(models.models, None) is None


def break_newest(workdir):
    """Puts a damaged copy of the newest checkpoint after it."""
    steps = sorted(workdir.glob("checkpoints/*"), key=lambda path: int(path.name))
    copy = steps[-1].with_name("99")
    shutil.copytree(steps[-1], copy)
    (copy / "checksums.json").unlink()


def test_a_model_is_not_replaced_by_an_older_one(tmp_path, caplog):
    workdir = old_run(tmp_path)
    client = Client(App(ready_service(workdir)))
    before = post(client, session=["item3"]).json()["model"]
    break_newest(workdir)
    assert client.post("/v1/reload").status_code == 409
    assert "is damaged" in caplog.text
    assert post(client, session=["item3"]).json()["model"] == before


def test_that_a_newer_checkpoint_is_damaged_is_known(tmp_path):
    workdir = old_run(tmp_path)
    assert Recommender.load(workdir, only_newest=True).is_newest
    break_newest(workdir)
    assert not Recommender.load(workdir).is_newest
    with pytest.raises(UserError, match=r"the newest checkpoint in .* is damaged"):
        Recommender.load(workdir, only_newest=True)
    # Nor is a run promoted that the service would refuse.
    with pytest.raises(UserError, match=r"the newest checkpoint in .* is damaged"):
        promote(str(workdir), str(tmp_path / "live"))


def test_an_answer_has_one_version_of_its_candidates(service):
    calls = []

    def submit(part):
        calls.append(part)
        if len(calls) == 1:
            service.served = dataclasses.replace(service.served)
        answer = asyncio.get_running_loop().create_future()
        answer.set_result(([len(calls)], service.served.identity))
        return answer

    async def run():
        return await service._joined(submit, ["a", "b"])

    found, identity = asyncio.run(run())
    assert (calls, found) == (["a", "b", "a", "b"], [3, 4])
    assert identity is service.served.identity


def test_candidates_that_cannot_be_kept_stay_as_they_were(workdir, tmp_path):
    folder = tmp_path / "kept"
    service = ready_service(workdir, candidates_folder=folder)
    client = Client(App(service))
    put = {"items": ["item3", "item4"]}
    assert client.put("/v1/candidates/a", json=put).status_code == 200
    # A folder in the file's place can be neither written over nor removed.
    (folder / "a.json").unlink()
    (folder / "a.json").mkdir()
    for answer in (
        client.put("/v1/candidates/a", json={"items": ["item9"]}),
        client.delete("/v1/candidates/a"),
    ):
        assert answer.status_code == 500
        assert "cannot be changed" in answer.json()["error"]["reason"]
    assert service.names() == {"a": 2}
    assert service._ids == {"a": ["item3", "item4"]}


def test_what_would_wait_too_long_is_refused_at_once(service, monkeypatch):
    app = App(service)

    def slow(group, works):
        time.sleep(0.1)
        return service.served.answer(group, works)

    monkeypatch.setattr(service.batcher, "_run", slow)
    monkeypatch.setattr(service.batcher, "seconds", {1: 0.1, 2: 0.1, 4: 0.1})
    monkeypatch.setattr(service.batcher, "max_wait", 0.15)
    answers = together(app, [{"session": ["item3"]}] * 40)
    refused = [one for one in answers if one.status_code == 503]
    accepted = [one for one in answers if one.status_code == 200]
    # One starts before the others arrive, then four at a time.
    assert 4 <= len(accepted) <= 13
    assert len(refused) == 40 - len(accepted)
    assert {one.headers["retry-after"] for one in refused} == {"1"}
    assert post(Client(app), session=[]).status_code == 200


def test_batches_are_of_one_group_and_in_order():
    done = []

    def run(group, works):
        time.sleep(0.01)
        done.append((group, list(works)))
        return [ValueError("no") if work == 5 else work for work in works]

    async def submit():
        batcher = Batcher(run, 3, 10.0)
        left = []
        batcher.on_batch = lambda size, seconds: left.append(batcher.waiting)
        answers = [batcher.submit("ab"[n in (2, 3)], 1, n) for n in range(8)]
        found = await asyncio.gather(*answers, return_exceptions=True)
        batcher.close()
        return found, left

    found, left = asyncio.run(submit())
    # When a batch has ended, the next one has already started.
    assert left == [3, 0, 0]
    assert isinstance(found.pop(5), ValueError)
    assert found == [0, 1, 2, 3, 4, 6, 7]
    assert done == [("a", [0, 1, 4]), ("b", [2, 3]), ("a", [5, 6, 7])]


def test_the_wait_is_estimated_by_size():
    async def run():
        release = threading.Event()
        batcher = Batcher(lambda group, works: release.wait(5) and works, 4, 1.0)
        batcher.seconds = {1: 0.5, 2: 0.6, 4: 0.8}
        assert batcher.wait() == 0
        waiting = [batcher.submit("a", 1, 0)]
        await asyncio.sleep(0.01)
        assert 0.4 < batcher.wait() <= 0.5
        waiting += [batcher.submit("a", 1, n) for n in range(5)]
        # A new request fits into the batch of the fifth waiting one.
        assert 0.4 + 0.8 < batcher.wait() <= 0.5 + 0.8
        with pytest.raises(Overloaded):
            batcher.check()
        waiting.append(batcher.submit("b", 2, 0))
        assert batcher.waiting == 7
        assert 0.4 + 0.8 + 0.6 < batcher.wait() <= 0.5 + 0.8 + 0.6
        release.set()
        await asyncio.gather(*waiting)
        batcher.close()

    asyncio.run(run())


def test_no_batch_takes_long(service, monkeypatch):
    batcher = service.batcher
    for name in ("max_size", "seconds"):
        monkeypatch.setattr(batcher, name, getattr(batcher, name))
    for slow, largest in ((0.01, 2), (0.2, 1)):
        batcher.seconds = {}

        def took(work, slow=slow, **_):
            return [slow * len(work.args[0])]

        with monkeypatch.context() as patch:
            patch.setattr("timeit.repeat", took)
            service.prepare()
        assert batcher.max_size == largest


def test_while_a_slow_batch_is_worked_on_the_next_gathers():
    async def run():
        release = threading.Event()
        batcher = Batcher(lambda group, works: release.wait(5) and works, 4, 0.001)
        batcher.seconds = {1: 0.03, 2: 0.03, 4: 0.03}
        waiting = [batcher.submit("a", 1, 0)]
        await asyncio.sleep(0)
        waiting += [batcher.submit("a", 1, n) for n in range(3)]
        assert batcher.wait() > batcher.max_wait
        assert not batcher.is_over()
        assert batcher.is_over(lag=0.03)
        # Nobody waits for a batch of a second.
        batcher.seconds = dict.fromkeys(batcher.seconds, 1.0)
        batcher._busy_until += 0.1
        assert batcher.is_over()
        batcher.seconds = dict.fromkeys(batcher.seconds, 0.03)
        waiting += [batcher.submit("a", 1, n) for n in range(12)]
        assert batcher.is_over()
        release.set()
        await asyncio.gather(*waiting)
        batcher.close()

    asyncio.run(run())


def test_a_body_that_does_not_come_is_not_waited_for(service):
    async def run():
        sent = []

        async def receive():
            await asyncio.sleep(5)

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/v1/recommend"}
        await App(service, limits=LIMITS)({**scope, "headers": []}, receive, send)
        return sent

    start, body = asyncio.run(run())
    assert start["status"] == 408
    assert (b"connection", b"close") in start["headers"]
    assert json.loads(body["body"])["error"]["place"] == "body"


def test_what_fails_in_the_background_is_logged(service, monkeypatch, caplog):
    monkeypatch.setattr(service, "is_ready", False)
    monkeypatch.setattr(service, "prepare", lambda: 1 / 0)

    async def run():
        app = App(service)
        app._in_background(app._start())
        await asyncio.sleep(0.2)

    asyncio.run(run())
    assert "ZeroDivisionError" in caplog.text


def test_before_it_is_ready_only_health_and_metrics_answer(service, monkeypatch):
    monkeypatch.setattr(service, "is_ready", False)
    client = Client(App(service))
    assert client.get("/v2/health/live").status_code == 200
    assert client.get("/v2/health/ready").status_code == 503
    assert client.get("/metrics").status_code == 200
    answer = post(client, session=[])
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


def test_metrics_count(client):
    post(client, session=["nope", "nix"])
    post(client, session=["item3"])
    post(client, session=3)
    text = client.get("/metrics").text
    for line in (
        'srgnn_requests_total{status="200"} 2.0',
        'srgnn_requests_total{status="422"} 1.0',
        "srgnn_request_seconds_count 3.0",
        "srgnn_batch_sessions_count 2.0",
        "srgnn_fallbacks_total 1.0",
        "srgnn_unknown_ids_total 2.0",
        "srgnn_waiting_sessions 0.0",
    ):
        assert line in text.splitlines()


def test_logs_have_no_contents_unless_asked(service):
    app = App(service)
    lines = []
    app.requests_log = lines.append
    client = Client(app)
    post(client, session=["item3", "secret"])
    app.logs_sessions = True
    post(client, session=["item3", "secret"])
    assert {"method": "POST", "path": "/v1/recommend", "status": 200}.items() <= lines[
        0
    ].items()
    assert "secret" not in str(lines[0])
    assert lines[1]["contents"] == [["item3", "secret"]]


@pytest.mark.slow  # asks for everything, a reload too
def test_the_description_names_what_there_is(client):
    paths = client.get("/openapi.json").json()["paths"]
    routes = {route.path for route in client.app._router.routes}
    assert paths.keys() == routes
    for path, methods in paths.items():
        for method in methods.keys() - {"parameters"}:
            answer = client.request(method, path.format(name="srgnn"))
            assert answer.status_code not in (405, 500)
    assert client.get("/v1/recommend").status_code == 405
    assert client.get("/nope").status_code == 404


def test_ids_are_completed(client):
    found = client.get("/v1/items", params={"prefix": "item1"}).json()["items"]
    assert found == ["item1", *(f"item{n}" for n in range(10, 19))]
    assert client.get("/v1/items", params={"prefix": "nope"}).json() == {"items": []}


@pytest.mark.slow  # trains on a mesh, and compiles all shapes for its eight devices
def test_a_table_that_was_trained_in_parts_is_served_in_parts(tmp_path):
    config = tiny_config(tmp_path)
    config.parallel, config.mesh_shape, config.epochs = "mesh", (1, 8), 1
    train_and_evaluate(config, str(tmp_path / "run"))
    service = ready_service(tmp_path / "run")
    client = Client(App(service))
    table = service.served.views.quick.params["item_embedding"]
    assert {part.data.shape for part in table.addressable_shards} == {(3, 8)}
    whole = Recommender.load(tmp_path / "run")
    assert service.served.identity == Served.of(whole).identity
    items = [f"item{n}" for n in range(12)]
    client.put("/v1/candidates/some", json={"items": items})
    for options in ({}, {"k": 5, "exclude_seen": True}, {"as_probabilities": True}):
        answer = post(client, sessions=SESSIONS, **options).json()
        expected = whole.recommend(SESSIONS, **options)
        for got, one in zip(answer["recommendations"], expected, strict=True):
            check_equal(got, one)
    answer = post(client, session=SESSIONS[0], candidates="some").json()
    check_equal(answer, *whole.recommend(SESSIONS[:1], candidates=items))
    found = client.post("/v1/explain", json={"session": SESSIONS[0]}).json()
    weights = whole.explain(SESSIONS[0]).attention
    np.testing.assert_allclose(found["attention"], weights, atol=1e-5)
