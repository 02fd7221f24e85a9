"""Hostile requests get the right code and one sentence, and the server lives on."""

import asyncio
import http.client
import json
import shutil
from contextlib import closing, suppress

import pytest
import torch

pytest.importorskip("fastapi")

from answering import TEXTS, save_adapter
from serving import ask, one, running


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "allowed").mkdir()
    save_adapter(folder / "allowed" / "mood", 1)
    save_adapter(folder / "outside", 2)
    (folder / "allowed" / "link").symlink_to(folder / "outside")
    (folder / "allowed" / "empty").mkdir()
    shutil.copytree(folder / "allowed" / "mood", folder / "allowed" / "pickled")
    weights = folder / "allowed" / "pickled" / "adapter_model.safetensors"
    torch.save({}, weights.with_name("adapter_model.bin"))
    weights.unlink()
    return folder


@pytest.fixture(scope="module")
def served(folder):
    limits = {"body_bytes": 50_000, "characters": 2_000, "inputs": 8, "body_s": 1.0}
    where = {"directory": folder / "allowed"}
    with running({"mood": folder / "allowed" / "mood"}, **limits, **where) as running_server:
        yield running_server


P, A, C = "/v1/predict", "/v1/adapters", "/v1/completions"
HOSTILE = [
    ("POST", P, b"", 422),
    ("POST", P, b"{", 422),
    ("POST", P, b"\xff\xfe{}", 422),
    ("POST", P, b"[" * 40_000, 400),
    ("POST", P, b'{"text": "' + b"x" * 60_000 + b'"}', 413),
    ("POST", P, b'{"text": 1e999}', 422),
    ("POST", P, b"[]", 422),
    ("POST", P, b"null", 422),
    ("POST", P, {}, 400),
    ("POST", P, {"text": ""}, 400),
    ("POST", P, {"text": "   "}, 400),
    ("POST", P, {"text": 3}, 422),
    ("POST", P, {"text": None, "fields": None}, 400),
    ("POST", P, {"text": "a", "fields": {"text": "b"}}, 400),
    ("POST", P, {"fields": {"body": "b"}}, 400),
    ("POST", P, {"fields": {"text": ["b"]}}, 400),
    ("POST", P, {"text": "x" * 3_000}, 400),
    ("POST", P, {"fields": {"text": "y" * 3_000}}, 400),
    ("POST", P, b'{"text": "\\ud800"}', 400),
    ("POST", P, {"text": "a", "adapter": "nobody"}, 404),
    ("POST", P, {"text": "a", "adapter": "../mood"}, 404),
    ("POST", P, b'{"text": "a", "adapter": "\\ud800"}', 422),
    ("POST", P, {"text": "a", "adapter": "x" * 300}, 422),
    ("POST", P, {"text": "a", "extra": 1}, 422),
    ("POST", P, {"inputs": []}, 400),
    ("POST", P, {"inputs": [{"text": "a"}] * 9}, 400),
    ("POST", P, {"inputs": [{"text": "a"}, {"text": ""}]}, 400),
    ("POST", P, {"inputs": [{"text": "a"}], "text": "b"}, 400),
    ("POST", P, {"text": "a", "timeout_ms": 0}, 422),
    ("POST", P, {"text": "a", "timeout_ms": -5}, 422),
    ("GET", P, None, 405),
    ("PUT", P, {"text": "a"}, 405),
    ("POST", "/v1/nothing", {}, 404),
    ("GET", "/v1/../../etc/passwd", None, 404),
    ("POST", "/v1/generate", {"text": "a", "max_new_tokens": 100_000}, 400),
    ("POST", "/v1/generate", {"text": "a", "temperature": -1}, 422),
    ("POST", C, {"model": "mood", "prompt": "a", "stream": [1]}, 422),
    ("POST", C, {"model": "nobody", "prompt": "a"}, 404),
    ("POST", C, {"model": "mood", "prompt": []}, 400),
    ("POST", C, {"model": "mood", "prompt": ""}, 400),
    ("POST", C, {"model": "mood", "prompt": "a", "max_tokens": 10**30}, 400),
    ("POST", "/v1/chat/completions", {"model": "mood", "messages": []}, 422),
    ("POST", A, {"name": "x", "source": "../outside"}, 403),
    ("POST", A, {"name": "x", "source": "/etc"}, 403),
    ("POST", A, {"name": "x", "source": "link"}, 403),
    ("POST", A, {"name": "x", "source": "."}, 403),
    ("POST", A, b'{"name": "x", "source": "a\\u0000b"}', 400),
    ("POST", A, {"name": "x", "source": "nothing"}, 400),
    ("POST", A, {"name": "x", "source": "empty"}, 400),
    ("POST", A, {"name": "x", "source": "pickled"}, 400),
    ("POST", A, {"name": "mood"}, 409),
    ("POST", A, {"name": "team/mood", "source": "mood"}, 422),
    ("DELETE", A + "/mood", None, 409),
    ("DELETE", A + "/nobody", None, 404),
    ("DELETE", A + "/%2e%2e%2fmood", None, 404),
]


@pytest.mark.parametrize("case", range(len(HOSTILE)))
def test_a_hostile_request_is_refused_in_one_sentence(served, case):
    method, path, body, code = HOSTILE[case]
    raw = body if isinstance(body, bytes) else None
    status, _, content = one(served[0], method, path, None if raw is not None else body, raw=raw)
    assert status == code, content
    said = json.dumps(content)
    assert "Traceback" not in said
    assert set(content) == {"error"}
    assert len(said) < 1_000
    assert one(served[0], "POST", P, {"text": TEXTS[0]})[0] == 200


def test_a_body_that_is_not_said_to_be_json_is_refused_with_the_header_to_give(served):
    sent = {"Content-Type": "application/x-www-form-urlencoded"}  # as curl -d sends it
    with closing(http.client.HTTPConnection(*served[0], timeout=10)) as connection:
        connection.request("POST", P, json.dumps({"text": "a"}), sent)
        answer = connection.getresponse()
        assert answer.status == 422
        assert "give Content-Type: application/json" in json.loads(answer.read())["error"]


def test_every_refusal_is_one_that_the_schema_lists(served):
    paths = one(served[0], "GET", "/openapi.json")[2]["paths"]
    for method, path, _, code in HOSTILE:
        named = A + "/{name}" if path.startswith(A + "/") else path
        if code != 405 and named in paths:
            assert str(code) in paths[named][method.lower()]["responses"], (method, path, code)
    for named in ("/v1/predict", "/v1/generate", C, "/v1/chat/completions", "/v1/routes"):
        assert {"401", "408", "429", "504"} <= paths[named]["post"]["responses"].keys()
    assert list(paths["/metrics"]["get"]["responses"]["200"]["content"]) == ["text/plain"]


def test_a_wrong_method_is_told_all_that_the_path_has(served):
    status, headers, _ = one(served[0], "PUT", A, {"name": "x"})
    assert status == 405
    assert headers["allow"].upper() == "GET, POST"  # the helper writes all small


@pytest.mark.parametrize(
    "content",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/predict HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nabcde",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 20_000 + b"\r\n",
    ],
)
def test_what_is_no_http_hurts_nobody(served, content):
    async def send():
        reader, writer = await asyncio.open_connection(*served[0])
        writer.write(content)
        try:
            answer = await asyncio.wait_for(reader.read(12), 5)
        except ConnectionError:
            answer = b""
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        return answer

    assert asyncio.run(send()) in (b"", *(b"HTTP/1.1 %d" % code for code in (200, 400, 431, 505)))
    assert one(served[0], "POST", P, {"text": TEXTS[0]})[0] == 200


def test_a_body_that_does_not_come_is_given_up_and_delays_nobody(served):
    async def slow_and_quick():
        reader, writer = await asyncio.open_connection(*served[0])
        writer.write(b"POST /v1/predict HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n\r\n{")
        await writer.drain()
        quick = [await ask(served[0], "POST", P, {"text": TEXTS[0]}) for _ in range(3)]
        slow = await reader.read()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        return slow, quick

    slow, quick = asyncio.run(slow_and_quick())
    assert slow.startswith(b"HTTP/1.1 408")
    assert [status for status, _, _ in quick] == [200] * 3


def test_a_body_that_comes_in_drops_has_no_more_time_than_another(served):
    async def dripping():
        reader, writer = await asyncio.open_connection(*served[0])
        writer.write(b"POST /v1/predict HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n\r\n{")
        answered = asyncio.ensure_future(reader.read())
        for _ in range(40):
            if answered.done():
                break
            with suppress(ConnectionError):
                writer.write(b" ")
                await writer.drain()
            await asyncio.sleep(0.3)  # each in time, had each a limit of its own
        writer.close()
        return await asyncio.wait_for(answered, 5)

    assert asyncio.run(dripping()).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("temperature", [1e-300, 1e-40, 0.001, 1.0])
def test_any_temperature_writes_something(served, temperature):
    body = {"text": TEXTS[0], "temperature": temperature, "max_new_tokens": 2}
    status, _, content = one(served[0], "POST", "/v1/generate", body)
    assert status == 200, content
