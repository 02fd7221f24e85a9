"""Rows of many requests share batches; each is answered as by its adapter alone."""

import asyncio
import json
import random
import threading
import time

import pytest

pytest.importorskip("fastapi")

from answering import PAIR, TEXTS, save_adapter
from peft_smop import Predictor
from peft_smop.serve.batching import MOST_TASKS, Busy
from serving import ask, kept_busy, one, running


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    return {
        "mood": save_adapter(folder / "mood", 1),
        "pair": save_adapter(folder / "pair", 2, PAIR, num_prompts=2, num_virtual_tokens=5),
        "one": save_adapter(folder / "one", 3, routing="single"),
        "plain": save_adapter(folder / "plain", 4, plain=True),
    }


@pytest.fixture(scope="module")
def served(adapters):
    folder = next(iter(adapters.values())).parent
    with running(adapters, directory=folder) as running_server:
        yield running_server


@pytest.fixture(scope="module")
def address(served):
    return served[0]


@pytest.fixture(scope="module")
def alone(adapters):
    """What each adapter says of each text by itself."""
    said = {}
    for name, path in adapters.items():
        inputs = [given(name, text)["text" if name != "pair" else "fields"] for text in TEXTS]
        for text, answer in zip(TEXTS, Predictor.load(path).predict(inputs), strict=True):
            said[name, text] = answer
    return said


def given(name, text):
    return {"fields": {"one": text, "two": "a cat"}} if name == "pair" else {"text": text}


def same(found, expected):
    assert found["prediction"] == expected.label
    assert found["probabilities"] == pytest.approx(expected.probabilities, abs=1e-4)
    assert found.get("prompt") == expected.prompt


def test_400_requests_of_40_clients_are_answered_as_by_each_adapter_alone(served, alone):
    address, server, _ = served
    before = server.batcher.computed
    draw = random.Random(0)
    jobs = [(draw.choice(["mood", "pair", "one", "plain"]), draw.choice(TEXTS)) for _ in range(400)]

    async def client(own):
        found = []
        for name, text in own:
            body = {"adapter": name, **given(name, text)}
            found.append((await ask(address, "POST", "/v1/predict", body), name, text))
        return found

    async def all_clients():
        return await asyncio.gather(*(client(jobs[i::40]) for i in range(40)))

    answered = [each for found in asyncio.run(all_clients()) for each in found]
    assert len(answered) == 400
    for (status, _, content), name, text in answered:
        assert status == 200, content
        assert content["answers"][0]["adapter"] == name
        same(content["answers"][0], alone[name, text])
    assert server.batcher.computed - before == 400
    _, _, counted = one(address, "GET", "/metrics")
    sums = dict(line.rsplit(" ", 1) for line in counted.decode().splitlines() if line[0] != "#")
    assert float(sums["smop_batch_rows_sum"]) / float(sums["smop_batch_rows_count"]) > 2
    assert float(sums["smop_batch_adapters_sum"]) / float(sums["smop_batch_adapters_count"]) > 1
    assert float(sums['smop_requests_total{route="/v1/predict",status="200"}']) >= 400


def test_a_list_across_adapters_comes_back_in_its_order(address, alone):
    names = ["pair", "mood", "one", "plain", "mood"]
    inputs = [{"adapter": n, **given(n, t)} for n, t in zip(names, TEXTS, strict=True)]
    status, _, content = one(address, "POST", "/v1/predict", {"inputs": inputs})
    assert status == 200
    for name, text, found in zip(names, TEXTS, content["answers"], strict=True):
        same(found, alone[name, text])


def test_routes_generate_models_and_lists(address, adapters, alone):
    _, _, content = one(address, "POST", "/v1/routes", {"adapter": "mood", "text": TEXTS[0]})
    expected = alone["mood", TEXTS[0]]
    assert content["routes"][0]["prompt"] == expected.prompt
    assert content["routes"][0]["share"] == pytest.approx(expected.prompt_probability, abs=1e-4)
    body = {"adapter": "one", "text": TEXTS[1], "max_new_tokens": 5}
    written = Predictor.load(adapters["one"]).generate([TEXTS[1]], max_new_tokens=5)
    assert one(address, "POST", "/v1/generate", body)[2] == {"texts": written}
    _, _, listed = one(address, "GET", "/v1/adapters")
    assert {a["name"]: a["labels"] for a in listed["adapters"]} == {
        name: list(PAIR.labels) if name == "pair" else ["good", "bad"] for name in adapters
    }
    assert one(address, "GET", "/healthz")[0] == one(address, "GET", "/readyz")[0] == 200


def test_openai_s_clients_are_understood(address, adapters):
    models = one(address, "GET", "/v1/models")[2]["data"]
    assert [model["id"] for model in models] == list(adapters)
    written = Predictor.load(adapters["mood"]).generate([TEXTS[0]], raw=True, max_new_tokens=4)
    body = {"model": "mood", "prompt": TEXTS[0], "max_tokens": 4, "user": "somebody"}
    status, _, content = one(address, "POST", "/v1/completions", body)
    assert (status, content["choices"][0]["text"]) == (200, written[0])
    body = {"model": "mood", "messages": [{"role": "user", "content": TEXTS[0]}], "max_tokens": 4}
    content = one(address, "POST", "/v1/chat/completions", body)[2]
    assert content["choices"][0]["message"] == {"role": "assistant", "content": written[0]}
    first = written[0][:1]
    body = {"model": "mood", "prompt": TEXTS[0], "max_tokens": 4, "stop": first}
    choice = one(address, "POST", "/v1/completions", body)[2]["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("", "stop")


def test_openai_s_own_client_reads_streams(address, adapters):
    openai = pytest.importorskip("openai", reason="the client is the openai package's")
    written = Predictor.load(adapters["mood"]).generate([TEXTS[0]], raw=True, max_new_tokens=4)
    asked = {"model": "mood", "max_tokens": 4, "stream": True}
    messages = [{"role": "user", "content": TEXTS[0]}]
    host, port = address
    with openai.OpenAI(base_url=f"http://{host}:{port}/v1", api_key="none") as client:
        events = list(client.completions.create(prompt=[TEXTS[0], TEXTS[0]], **asked))
        assert [choice.text for event in events for choice in event.choices] == written * 2
        events = list(client.chat.completions.create(messages=messages, **asked))
    said = "".join(event.choices[0].delta.content or "" for event in events)
    assert said == written[0]
    assert events[-1].choices[0].finish_reason == "length"
    assert len({event.id for event in events}) == 1


def test_loading_and_unloading_in_traffic_fails_no_request(served, alone):
    address, _, _ = served
    stop, wrong = threading.Event(), []

    def traffic():
        while not stop.is_set():
            status, _, content = one(
                address, "POST", "/v1/predict", {"adapter": "mood", "text": TEXTS[2]}
            )
            if status != 200 or content["answers"][0]["prediction"] != (
                alone["mood", TEXTS[2]].label
            ):
                wrong.append(content)

    threads = [threading.Thread(target=traffic) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(6):
        body = {"name": f"new{number}", "source": "pair"}
        assert one(address, "POST", "/v1/adapters", body)[0] == 201
        body = {"adapter": f"new{number}", **given("pair", TEXTS[0])}
        same(one(address, "POST", "/v1/predict", body)[2]["answers"][0], alone["pair", TEXTS[0]])
        assert one(address, "DELETE", f"/v1/adapters/new{number}")[0] == 200
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert one(address, "DELETE", "/v1/adapters/new1")[0] == 404
    assert one(address, "POST", "/v1/adapters", {"name": "mood"})[0] == 409


def test_a_client_that_leaves_is_not_computed_for(adapters):
    with running({"mood": adapters["mood"]}) as (address, server, _), kept_busy(server) as gate:

        async def come_and_go():
            _, writer = await asyncio.open_connection(*address)
            content = json.dumps({"text": TEXTS[0]}).encode()
            writer.write(
                b"POST /v1/predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
                + f"content-length: {len(content)}\r\n\r\n".encode()
                + content
            )
            await writer.drain()
            while not server.batcher.waiting:
                await asyncio.sleep(0.01)
            writer.close()
            await writer.wait_closed()

        asyncio.run(come_and_go())
        while server.metrics.text(waiting=0, adapters=1).count(b'status="499"') == 0:
            time.sleep(0.01)
        gate.set()
        assert one(address, "POST", "/v1/predict", {"text": TEXTS[1]})[0] == 200
        assert server.batcher.computed == 1


def test_deadlines_and_back_pressure(adapters):
    limited = running({"mood": adapters["mood"]}, queue_rows=3)
    with limited as (address, server, _), kept_busy(server) as gate:
        status, _, content = one(
            address, "POST", "/v1/predict", {"text": "late one", "timeout_ms": 50}
        )
        assert (status, "deadline" in content["error"]) == (504, True)
        inputs = [{"text": text} for text in TEXTS[:4]]
        status, headers, content = one(address, "POST", "/v1/predict", {"inputs": inputs})
        assert status == 429
        assert int(headers["retry-after"]) >= 1
        late = {"inputs": inputs[:3], "timeout_ms": 50}
        assert one(address, "POST", "/v1/predict", late)[0] == 504
        assert server.batcher.waiting == 3
        assert one(address, "GET", "/readyz")[0] == 200
        # there is room for three: nobody waits for those that were late
        status, _, _ = one(address, "POST", "/v1/predict", {"inputs": inputs[:3], "timeout_ms": 50})
        assert status == 504
        gate.set()
        assert one(address, "POST", "/v1/predict", {"inputs": inputs[:3]})[0] == 200


def test_tasks_that_nobody_waits_for_keep_no_others_out(served):
    """Texts to be written, adapters to be loaded: they too have clients that leave."""
    _, server, _ = served

    async def asked():
        left = [asyncio.ensure_future(server.batcher.between(list)) for _ in range(MOST_TASKS)]
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await server.batcher.between(list)
        for task in left:
            task.cancel()
        await asyncio.sleep(0)
        wanted = asyncio.ensure_future(server.batcher.between(dict))
        await asyncio.sleep(0)
        gate.set()
        return await wanted

    with kept_busy(server) as gate:
        while server.batcher._tasks:  # until the thread has taken up what keeps it
            time.sleep(0.01)
        assert asyncio.run(asked()) == {}


def test_what_was_accepted_before_the_stop_is_answered(adapters):
    whole = running({"mood": adapters["mood"]})
    with whole as (address, server, uvicorn_server), kept_busy(server) as gate:

        async def all_of_them():
            body = {"text": TEXTS[0]}
            asked = [
                asyncio.ensure_future(ask(address, "POST", "/v1/predict", body)) for _ in range(30)
            ]
            while server.batcher.waiting < 30:
                await asyncio.sleep(0.01)
            uvicorn_server.should_exit = True  # what SIGTERM sets
            await asyncio.sleep(0.2)
            gate.set()
            return await asyncio.gather(*asked)

        assert [status for status, _, _ in asyncio.run(all_of_them())] == [200] * 30


def test_a_token_is_asked_for(adapters):
    with running({"mood": adapters["mood"]}, token="s3cret") as (address, _, _):
        body = {"text": TEXTS[0]}
        for headers in ([], ["authorization: Bearer wrong"], ["authorization: s3cret"]):
            status, _, content = one(address, "POST", "/v1/predict", body, headers=headers)
            assert (status, "token" in content["error"]) == (401, True)
        headers = ["authorization: Bearer s3cret"]
        assert one(address, "POST", "/v1/predict", body, headers=headers)[0] == 200
        assert one(address, "GET", "/healthz")[0] == 200
