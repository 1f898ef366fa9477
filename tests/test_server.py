"""A serving process: shutdown, slow clients, too many clients, latency."""

import asyncio
import contextlib
import itertools
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from benchmarks import common
from benchmarks.load import Bodies, EtudeSessions, request, send
from benchmarks.serve import Served
from srgnn_jax.errors import UserError
from srgnn_jax.serve import server
from srgnn_jax.serve.recommend import Recommender
from tests.fuzz_http import fuzz
from tests.served import Process
from tests.test_commands import commands
from tests.tiny import old_run

BODIES = [
    json.dumps({"session": [f"item{n % 20}", f"item{7 * n % 19}"]}).encode()
    for n in range(40)
]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return old_run(tmp_path_factory.mktemp("served"))


def answered(body):
    return b'"items":' in body


@pytest.mark.slow
def test_sigterm_answers_all_that_was_accepted_and_sighup_reloads(workdir, tmp_path):
    with Process(workdir, tmp_path / "log", max_wait=30.0) as served:
        bodies = []

        async def run():
            loop = asyncio.get_running_loop()
            loop.call_later(0.5, os.kill, served.process.pid, signal.SIGHUP)
            loop.call_later(2.0, served.terminate)
            return await send(
                served.port, Bodies(BODIES), 50, 3.0, on_answer=bodies.append
            )

        load = asyncio.run(run())
        assert served.wait(10) == 0
    # Requests after SIGTERM find no server; none of those before it is lost.
    assert len(load.accepted) >= 95
    assert load.errors + len(load.accepted) == 150
    assert all(map(answered, bodies))
    lines = [json.loads(line) for line in served.said().splitlines()]
    messages = [line["message"] for line in lines]
    assert messages[-1] == "stopped"
    assert "reloaded (SIGHUP): step 14" in messages
    assert not any("item" in message for message in messages)


@pytest.mark.slow
def test_slow_clients_and_too_many_are_cut_and_others_answered(workdir, tmp_path):
    options = {"seconds": 1.0, "connections": 4, "max_wait": 30.0}
    with (
        contextlib.ExitStack() as stack,
        Process(workdir, tmp_path / "log", **options) as served,
    ):

        def connect(first=b""):
            address = "127.0.0.1", served.port
            client = stack.enter_context(socket.create_connection(address, timeout=8))
            client.sendall(first)
            return client

        silent, slow = connect(), connect(b"POST /v1/recommend HTTP/1.1\r\nA: ")
        endless = connect(b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 8_000)
        body = connect(b"POST /v1/recommend HTTP/1.1\r\nContent-Length: 9\r\n\r\n{")
        assert endless.recv(1000) == b""
        endless.close()
        fourth, one_too_many = connect(), connect()
        assert one_too_many.recv(1000).startswith(b"HTTP/1.1 503 ")
        before = time.monotonic()
        assert silent.recv(1000) == slow.recv(1000) == fourth.recv(1000) == b""
        assert time.monotonic() - before < 5
        assert body.recv(1000).startswith(b"HTTP/1.1 408 ")
        load = asyncio.run(send(served.port, Bodies(BODIES), 20, 1.0, connections=1))
        assert (load.errors, len(load.accepted) + len(load.refused)) == (0, 20)
        assert "traceback" not in served.said()


def test_what_passes_by_uvicorn_is_one_whole_plain_request():
    head = b"POST /v1/recommend HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n"

    def whole(data):
        found = server._WHOLE.fullmatch(data)
        return found and int(found[2]) == len(found[3])

    for more in (
        b"",
        b"Connection: keep-alive\r\nX-A: b: c\r\n",
        b"authorization: B x\r\n",
    ):
        assert whole(head + more + b"\r\n{}")
    for other in (
        head,
        head + b"\r\n{",
        head + b"\r\n{}P",
        head + b"Connection: close\r\n\r\n{}",
        head + b"Transfer-Encoding: chunked\r\n\r\n{}",
        head + b"Content-Length: 2\r\n\r\n{}",
        head + b"Expect: 100-continue\r\n\r\n{}",
        head + b"A: b\nContent-Length: 3\r\n\r\n{}",
        head + b" folded\r\n\r\n{}",
        head.replace(b"2", b"-2") + b"\r\n{}",
        head.replace(b"POST", b"post") + b"\r\n{}",
        head.replace(b"/v1", b"/V1") + b"\r\n{}",
        head.replace(b"1.1", b"1.0") + b"\r\n{}",
    ):
        assert not whole(other)


@pytest.mark.slow
def test_requests_that_come_together_or_in_parts_are_answered_in_order(
    workdir, tmp_path
):
    """On one connection, with a token, and some of them through uvicorn."""
    (tmp_path / "token").write_text("0123456789abcdef")
    options = {"max_wait": 30.0, "auth_token_file": str(tmp_path / "token")}
    with Process(workdir, tmp_path / "log", **options) as served:
        token = b"Authorization: Bearer 0123456789abcdef\r\n"
        heads = [b"", b"Connection: keep-alive\r\n", b"Accept: a\r\n"]
        sent = [
            request(body).replace(b"\r\nHost", b"\r\n" + token + heads[n % 3] + b"Host")
            for n, body in enumerate(BODIES[:9])
        ]
        address = "127.0.0.1", served.port
        with socket.create_connection(address, timeout=20) as client:

            def answers(count):
                got = b""
                while got.count(b'"model":') < count or not got.endswith(b"}"):
                    got += client.recv(2**16)
                return re.findall(rb"(\{\"items.*?\}\})", got)

            one_by_one = []
            for one in sent:
                client.sendall(one)
                one_by_one += answers(1)
            client.sendall(b"".join(sent))
            assert answers(9) == one_by_one
            for part in (sent[0][:30], sent[0][30:-5], sent[0][-5:] + sent[1]):
                client.sendall(part)
                time.sleep(0.1)
            assert answers(2) == one_by_one[:2]
            client.sendall(sent[0])
            client.sendall(sent[1] + sent[2][:40])
            time.sleep(0.1)
            client.sendall(sent[2][40:])
            assert answers(3) == one_by_one[:3]
            client.sendall(request(BODIES[0]))
            assert client.recv(2**16).startswith(b"HTTP/1.1 401 ")


@pytest.mark.slow
def test_over_capacity_the_rest_is_refused_and_connections_stay(workdir, tmp_path):
    with Process(workdir, tmp_path / "log", max_wait=0.0) as served:
        load = asyncio.run(send(served.port, Bodies(BODIES), 400, 1.0, connections=20))
    assert load.errors == 0
    assert len(load.accepted) > 10
    assert len(load.refused) > 10
    assert len(load.accepted) + len(load.refused) == 400


def test_a_token_is_read_and_a_short_one_refused(tmp_path):
    path = tmp_path / "token"
    path.write_text("0123456789abcdef\n")
    assert server.read_token(str(path)) == "0123456789abcdef"
    for wrong in ("", "short", "two words are no token"):
        path.write_text(wrong)
        with pytest.raises(UserError, match="does not hold a token of at least 16"):
            server.read_token(str(path))
    with pytest.raises(UserError, match="cannot read --auth_token_file"):
        server.read_token(str(tmp_path / "none"))


@pytest.mark.slow  # ten seconds of load, on all shapes
def test_200_requests_a_second_are_answered_as_recommend_does(workdir, tmp_path):
    recommender = Recommender.load(workdir)
    expected = {
        tuple(found.items): found.scores
        for found in recommender.recommend([json.loads(b)["session"] for b in BODIES])
    }
    bodies = []
    with Process(workdir, tmp_path / "log", max_wait=1.0) as served:
        asyncio.run(send(served.port, Bodies(BODIES), 100, 1.0))
        load = asyncio.run(
            send(served.port, Bodies(BODIES), 200, 10.0, on_answer=bodies.append)
        )
    assert (len(load.accepted), load.errors, load.refused) == (2000, 0, [])
    for body in bodies:
        found = json.loads(body)
        scores = expected[tuple(found["items"])]
        np.testing.assert_allclose(found["scores"], scores, atol=1e-5)
    # Generous: the machine may be busy.
    assert np.percentile(load.accepted, 90) <= 1.0


@pytest.mark.slow  # a process, all shapes, and the benchmark
def test_every_command_of_serving_works_in_turn(tmp_path):
    (tmp_path / "runs").mkdir()
    old_run(tmp_path).rename(tmp_path / "runs" / "shop")
    serve, *rest = [text for kind, text in commands("serving.md") if kind == "sh"]
    assert "--mode=serve" in serve
    small = " --catalog 300 8 --rate=50 --seconds=1 --scenarios rate"
    command = shlex.split(serve.replace("=8000", "=0"))[1:]
    outputs = {}
    with Served([*command, "--max_wait=30"], tmp_path) as port:
        for text in rest:
            text = text.replace("localhost:8000", f"127.0.0.1:{port}")
            text = text.replace("python -m", f"{sys.executable} -m")
            done = subprocess.run(
                text + small * ("benchmarks" in text),
                shell=True,
                cwd=common.ROOT,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, f"{text}\n{done.stderr}"
            outputs[text.partition(str(port))[2] or text] = done.stdout
    assert len(outputs) == len(rest) == 16
    first, *_ = outputs.values()
    assert len(json.loads(first)["items"]) == 5
    assert "srgnn_requests_total" in outputs["/metrics"]
    assert json.loads([*outputs.values()][-1])["rows"][0]["errors"] == 0


def test_the_generator_counts_from_when_a_request_was_due():
    """If one answer takes long, those after it are late."""

    async def run():
        delays = itertools.chain([0.3], itertools.repeat(0.0))

        async def answer(reader, writer):
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while await reader.readuntil(b"}"):
                    await asyncio.sleep(next(delays))
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
            writer.close()

        there = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = there.sockets[0].getsockname()[1]
        load = await send(port, Bodies([b"{}"]), 20, 1.0, connections=1)
        there.close()
        await asyncio.sleep(0.05)
        return load

    load = asyncio.run(run())
    assert (len(load.accepted), load.errors) == (20, 0)
    first, second, *_ = load.accepted
    assert first > 0.3
    assert second > 0.2
    assert min(load.accepted) < 0.2


def test_etudes_next_click_comes_after_the_answer():
    sessions = EtudeSessions(50)
    first, one = sessions.take()
    second, other = sessions.take()
    assert first is not second
    sessions.answered(second)
    again, longer = sessions.take()
    assert again is second

    def clicks(request):
        return json.loads(request.partition(b"\r\n\r\n")[2])["session"]

    assert len(clicks(one)) == len(clicks(other)) == 1
    assert clicks(longer)[:-1] == clicks(other)
    lengths = []
    for _ in range(300):
        session, request = sessions.take()
        while request := next(session, None):
            last = request
        lengths.append(len(clicks(last)))
        assert all(1 <= int(raw) <= 50 for raw in clicks(last))
    # Most sessions are short, some very long; at least 2 clicks are drawn.
    assert min(lengths) == 2
    assert np.median(lengths) == 3
    assert max(lengths) > 100


@pytest.mark.slow  # a process; slow requests take seconds
def test_broken_requests_of_every_kind_are_answered_or_cut_off():
    done, wrong = fuzz(range(50), seed=1)
    assert not wrong
    assert {kind for kind, _ in done} == {"body", "head", "route", "slow"}
    assert {"200", "400", "422", "404"} <= {status for _, status in done}
