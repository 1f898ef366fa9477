"""Sends broken requests to a serving process: none may fail inside or stop it.

    python -m tests.fuzz_http --cases=2000 --seed=0

A case is drawn from the seed and its number. Its kind says what is broken:

    body      JSON that is cut, changed or nested, or has wrong types or huge numbers
    head      lines and headers that are odd, doubled, long or contradict each other
    route     any path with any method
    slow      a request that arrives in pieces, or is interrupted

Each case must be answered or cut off, and no answer may be a 500 or reveal code.
"""

import argparse
import asyncio
import collections
import contextlib
import gzip
import json
import pathlib
import re
import tempfile
from typing import NamedTuple

import numpy as np

from tests.served import Process
from tests.tiny import old_run

# Seconds to send a request, seconds in which it must be answered or cut off, and
# seconds of silence after which an answer is complete.
SENT_WITHIN, ANSWERED_WITHIN, SILENCE = 3.0, 20.0, 0.3
TOGETHER = 48
GOOD = b'{"session": ["item3", "item4"], "k": 5}'

HUGE = (
    "1" + "0" * 400,
    "-" + "9" * 30,
    "1e999",
    "-1e999",
    "1e-400",
    "9007199254740993",
)
NUMBERS = (*HUGE, "NaN", "Infinity", "-0", "0", "1.5", "1e1", "101", str(2**64))
TEXTS = (
    *(
        '""',
        '"item3"',
        '" item3 "',
        '"\\u0000"',
        '"\\ud800"',
        '"\\x"',
        '"\u00e9\u4e2d"',
    ),
    *('"\ufffe"', '"' + "x" * 40_000 + '"', '"in-stock"', "'item3'", '"' + "\\" * 7),
)
OTHERS = (
    *("null", "true", "[]", "{}", "[[]]", '["item3"]', '{"item3": 1}', "[null]", "[,]"),
    *('["item3",]', "[1.5]", '["item3", ["item4"]]', "nul", "[" * 5000, '{"a":' * 3000),
    *("[" * 900 + "]" * 900, "[" + "1," * 500 + "1]", '["x"' + ', "item3"' * 400 + "]"),
    *("[" + "[],".join([""] * 300) + "[]]", "/* */ []"),
)
FIELDS = (
    *("session", "sessions", "k", "exclude_seen", "candidates", "as_probabilities"),
    *("items", "Session", "__proto__", "", "session\\u0000", "k" * 5000),
)
PATHS = (
    *("/v1/recommend", "/v1/explain", "/v1/items", "/v1/candidates", "/v1/reload"),
    *("/v1/candidates/a", "/v1/candidates/..%2f..%2fetc", "/v1/candidates/%00"),
    *("/v1/items?prefix=%ff%fe", "/v1/items?prefix=item1&prefix=", "/v1/items?&&=%"),
    *("/", "//", "/../../etc/passwd", "/metrics", "/openapi.json", "/v2/models/srgnn"),
    *("/v2/models/%2e%2e", "/v2/health/live", "/v2/health/ready/", "/V1/recommend"),
    *("*", "http://other.example/v1/recommend", "host:80", "/" + "a" * 20_000, "/\xff"),
    *("/v1/recommend?x=1", "/v1/recommend#x", "/v1/%72ecommend", "/v1/recommend/"),
)
METHODS = (
    *("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "CONNECT"),
    *("get", "BREW", "PRI", "", "POST POST", "\x00"),
)
HEADERS = (
    *("Content-Length: 0", "Content-Length: 1", "Content-Length: 999999999999"),
    *("Content-Length: -1", "Content-Length: 0x10", "Content-Length: 5, 5"),
    *("Content-Length : 5", "content-length:5", "Transfer-Encoding: chunked"),
    *("Transfer-Encoding: gzip, chunked", "Transfer-Encoding: x", "Connection: close"),
    *("Connection: upgrade\r\nUpgrade: websocket", "Upgrade: h2c", "TE: trailers"),
    *("Expect: 100-continue", "Expect: x", "Host:", "Host: a\r\nHost: b", "a" * 40_000),
    *("A: " + "b" * 40_000, "A: b\r\n" * 3000 + "A: b", "A : b", ": b", "A", "A: \x00"),
    *("A: \xff", "A: b\nB: c", " folded", "Authorization: Basic !", "Origin: null"),
    *("Content-Type: text/xml", "Content-Encoding: gzip", "Range: bytes=0-", "\r"),
)


class Case(NamedTuple):
    """A request: the pieces to write, the pause between them, and if it is whole."""

    kind: str
    pieces: list[bytes]
    pause: float = 0.0
    is_whole: bool = True


def draw_body(rng: np.random.Generator) -> bytes:
    """Draws a body: a good one with odd fields, perhaps cut or changed."""
    odd = [*NUMBERS, *TEXTS, *OTHERS]
    fields = {"session": '["item3"]'}
    if rng.random() < 0.2:
        inner = ", ".join(rng.choice(odd, rng.integers(4)))
        fields = {"sessions": f'[["item3"], {inner}]'}
    for _ in range(rng.integers(3)):
        fields[str(rng.choice(FIELDS))] = str(rng.choice(odd))
    text = ", ".join(f'"{name}": {value}' for name, value in fields.items())
    if rng.random() < 0.1:
        text += ', "session": []'
    body = bytearray(f"{{{text}}}".encode("utf-8", "surrogatepass"))
    for _ in range(rng.integers(1, 4) if rng.random() < 0.4 else 0):
        body[rng.integers(len(body))] = rng.integers(256)
    if rng.random() < 0.1:
        body = body[: rng.integers(len(body))]
    if rng.random() < 0.1:
        odd_whole = [b"", b"\xef\xbb\xbf" + body, gzip.compress(body), body * 2]
        odd_whole += [bytes(rng.bytes(50)), json.dumps(text).encode("utf-16")]
        body = bytearray(odd_whole[rng.integers(len(odd_whole))])
    return bytes(body)


def request(
    body: bytes, path: str = "/v1/recommend", method: str = "POST", *headers: str
) -> bytes:
    """Returns a request's bytes, with a length unless the headers give one."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *headers]
    if not any(re.match("content-length|transfer", x, re.IGNORECASE) for x in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def draw_of_body(rng: np.random.Generator) -> Case:
    path = ["/v1/recommend"] * 3 + ["/v1/explain", "/v1/candidates/a"]
    path = path[rng.integers(len(path))]
    method = "PUT" if "candidates" in path else "POST"
    return Case("body", [request(draw_body(rng), path, method)])


def draw_of_head(rng: np.random.Generator) -> Case:
    body = GOOD if rng.random() < 0.5 else draw_body(rng)
    whole = request(body, "/v1/recommend", "POST", *rng.choice(HEADERS, 2))
    if rng.random() < 0.5:
        line = ["POST / HTTP/9.9", "POST /", "HELLO", "", "\x16\x03\x01\x02", "\x00"]
        line += ["PRI * HTTP/2.0", "POST /v1/recommend HTTP/1.0", "POST  / HTTP/1.1"]
        first = line[rng.integers(len(line))].encode("latin-1")
        whole = first + whole[whole.index(b"\r\n") :]
    if rng.random() < 0.2:
        whole = whole.replace(b"\r\n", b"\n")
    if rng.random() < 0.2:
        chunk = [
            b"5\r\nhello\r\n0\r\n\r\n",
            b"zz\r\n",
            b"-1\r\n",
            b"fffffffffffffffff\r\n",
        ]
        whole += chunk[rng.integers(len(chunk))]
    if rng.random() < 0.3:
        whole = whole * int(rng.integers(2, 5))
    return Case("head", [whole], is_whole=False)


def draw_of_route(rng: np.random.Generator) -> Case:
    path, method = str(rng.choice(PATHS)), str(rng.choice(METHODS[:7]))
    if rng.random() < 0.2:
        method = str(rng.choice(METHODS))
    body = draw_body(rng) if rng.random() < 0.5 else b""
    # Otherwise it is not a valid request line.
    is_line = method.isalpha() and method.isupper() and path.startswith("/")
    is_whole = is_line and path.isascii() and len(path) < 1000
    whole = request(body, path, method)
    return Case("route", [whole], is_whole=is_whole and method in METHODS[:7])


def draw_of_slow(rng: np.random.Generator) -> Case:
    whole = request(GOOD if rng.random() < 0.5 else draw_body(rng))
    cuts = np.sort(rng.integers(0, len(whole), rng.integers(1, 6))).tolist()
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, None], strict=True)]
    if rng.random() < 0.4:
        return Case("slow", pieces[:-1], 0.05, is_whole=False)
    is_slow = rng.random() < 0.2
    return Case("slow", pieces, 1.5 if is_slow else 0.02, is_whole=not is_slow)


KINDS = (draw_of_body, draw_of_body, draw_of_head, draw_of_route, draw_of_slow)


def draw(seed: int, case: int) -> Case:
    """Draws a case."""
    return KINDS[case % len(KINDS)](np.random.default_rng([seed, case]))


async def answer_to(case: Case, port: int) -> bytes:
    """Sends a case and returns everything that arrives."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = b""
    try:
        with contextlib.suppress(ConnectionError):
            for piece in case.pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(case.pause)
        with contextlib.suppress(ConnectionError, TimeoutError):
            while True:
                async with asyncio.timeout(SILENCE if answer else ANSWERED_WITHIN):
                    part = await reader.read(2**16)
                if not part:
                    break
                answer += part
    finally:
        writer.close()
    return answer


def what_is_wrong(case: Case, answer: bytes) -> str:
    """Returns what is wrong with an answer; "" if nothing is."""
    statuses = re.findall(rb"HTTP/1\.1 (\d\d\d) ", answer)
    if case.is_whole and not statuses:
        return "it was not answered"
    if answer and not answer.startswith(b"HTTP/1.1 "):
        return f"not an HTTP answer: {answer[:80]!r}"
    if b"500" in statuses:
        return "it failed inside"
    for secret in (b"Traceback", b"srgnn_jax", b"site-packages", b".py", b"uvicorn"):
        if secret in answer and b"text/html" not in answer:
            return f"the answer reveals {secret.decode()}"
    _, _, body = answer.partition(b"\r\n\r\n")
    if len(statuses) == 1 and statuses[0] >= b"400" and b"/json" in answer and body:
        error = json.loads(body)["error"]
        if error.keys() != {"place", "reason"}:
            return f"the error has {error.keys()}"
    return ""


async def send_all(
    cases: range, seed: int, served: Process
) -> tuple[collections.Counter, list[str]]:
    """Sends cases, some at a time, and good requests between them.

    Returns:
      How often each kind got each status, and what went wrong.
    """
    done: collections.Counter = collections.Counter()
    wrong: list[str] = []
    good = Case("good", [request(GOOD, "/v1/recommend", "POST", "Connection: close")])

    async def one(number: int) -> None:
        case = draw(seed, number)
        try:
            answer = await answer_to(case, served.port)
            fault = what_is_wrong(case, answer)
        except (OSError, TimeoutError, ValueError) as error:
            answer, fault = b"", repr(error)
        status = answer[9:12].decode("ascii", "replace") or "cut off"
        done[case.kind, status] += 1
        if fault:
            wrong.append(f"case {number} ({case.kind}): {fault}")

    expected = None
    for start in range(cases.start, cases.stop, TOGETHER):
        await asyncio.gather(*map(one, cases[start - cases.start :][:TOGETHER]))
        answer = await answer_to(good, served.port)
        expected = expected or answer
        if not answer.startswith(b"HTTP/1.1 200 ") or answer != expected:
            wrong.append(f"after case {start}: a good request got {answer[:200]!r}")
    return done, wrong


def fuzz(cases: range, seed: int) -> tuple[collections.Counter, list[str]]:
    """Serves a small model and sends it cases; see `send_all`."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        workdir, log = old_run(folder), folder / "log"
        options = {"seconds": SENT_WITHIN, "max_wait": 30.0}
        with Process(workdir, log, **options) as served:
            done, wrong = asyncio.run(send_all(cases, seed, served))
            if not served.process.is_alive():
                wrong.append("the process has ended")
            served.terminate()
            if served.wait(20) != 0:
                wrong.append("the process did not shut down cleanly")
        said = served.said()
        if "Traceback" in said or "failed" in said or '"level":"error"' in said:
            wrong.append(f"the log has failures:\n{said[-3000:]}")
    return done, wrong


def main() -> None:
    """Sends the cases that the flags select, and prints the outcome."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="send this case, and print it")
    flags = parser.parse_args()
    cases = range(flags.cases)
    if flags.only is not None:
        cases = range(flags.only, flags.only + 1)
        print(
            *(piece[:2000] for piece in draw(flags.seed, flags.only).pieces), sep="\n"
        )
    done, wrong = fuzz(cases, flags.seed)
    for kind, status in sorted(done):
        print(f"{kind:<8}{status:>8}{done[kind, status]:>7}")
    print(*wrong, f"{len(wrong)} of {len(cases)} went wrong", sep="\n")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
