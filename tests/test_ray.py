"""The Ray Serve application, if Ray is installed: `make test-long` installs it."""

import socket

import httpx
import numpy as np
import pytest

from srgnn_jax.serve import ray_app
from srgnn_jax.serve.recommend import Recommender
from tests.tiny import old_run

# Ray's own warnings.
pytestmark = pytest.mark.filterwarnings("ignore")


def test_arguments_that_are_wrong_are_told():
    pytest.importorskip("ray", reason="make test-long installs it")
    with pytest.raises(ValueError, match="unknown argument 'workdr'; choose from work"):
        ray_app.app({"workdr": "runs/shop"})
    with pytest.raises(ValueError, match="workdir=FOLDER is missing"):
        ray_app.app({"replicas": "2"})


@pytest.mark.slow  # starts Ray, and compiles all shapes in two processes
def test_two_replicas_answer_as_recommend_does(tmp_path):
    ray = pytest.importorskip("ray", reason="make test-long installs it")
    from ray import serve

    workdir = old_run(tmp_path)
    sessions = [[f"item{n % 20}", f"item{7 * n % 19}"] for n in range(20)]
    expected = Recommender.load(workdir).recommend(sessions)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ray.init(num_cpus=4, include_dashboard=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        arguments = {"workdir": str(workdir), "replicas": "2", "max_wait": "30"}
        serve.run(ray_app.app(arguments))
        (deployment,) = serve.status().applications["default"].deployments.values()
        assert deployment.replica_states == {"RUNNING": 2}
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            for session, ours in zip(sessions, expected, strict=True):
                answer = client.post("/v1/recommend", json={"session": session})
                assert answer.headers["content-type"] == "application/json"
                assert answer.json()["items"] == ours.items
                np.testing.assert_allclose(
                    answer.json()["scores"], ours.scores, atol=1e-5
                )
            wrong = client.post("/v1/recommend", json={"session": [None]})
            assert (wrong.status_code, wrong.json()["error"]["place"]) == (
                422,
                "session[0]",
            )
            put = client.put("/v1/candidates/one", json={"items": ["item1"]})
            assert put.status_code == 403
    finally:
        serve.shutdown()
        ray.shutdown()
