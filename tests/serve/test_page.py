"""The page for people, in a headless Chromium where there is one."""

import json
import shutil
import socket
import subprocess
import time
import urllib.request
from contextlib import ExitStack

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("websockets")

from websockets.sync.client import connect

from answering import PAIR, TEXTS, save_adapter
from peft_smop import Predictor
from serving import one, running

CHROMIUM = next((p for n in ("chromium", "chromium-browser") if (p := shutil.which(n))), None)


class Browser:
    """A tab, by Chromium's own protocol."""

    def __init__(self, tmp_path):
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))
            port = held.getsockname()[1]
        self.process = subprocess.Popen(
            [
                CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                f"--remote-debugging-port={port}", f"--user-data-dir={tmp_path}", "about:blank",
            ],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for _ in range(300):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as reply:
                    pages = [p for p in json.load(reply) if p["type"] == "page"]
                    break
            except OSError:
                time.sleep(0.1)
        self.open = ExitStack()
        place = connect(pages[0]["webSocketDebuggerUrl"], max_size=None)
        self.socket = self.open.enter_context(place)
        self.count = 0

    def call(self, method, **params):
        self.count += 1
        self.socket.send(json.dumps({"id": self.count, "method": method, "params": params}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == self.count:
                return message["result"]

    def run(self, code):
        said = self.call("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in said, said
        return said["result"].get("value")

    def until(self, code):
        for _ in range(200):
            if self.run(code):
                return
            time.sleep(0.05)
        raise AssertionError(f"never came true: {code}; {self.run('document.body.innerText')}")

    def close(self):
        self.open.close()
        self.process.terminate()
        self.process.wait()


@pytest.fixture
def browser(tmp_path):
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here")
    browser = Browser(tmp_path / "profile")
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    return {
        "mood": save_adapter(folder / "mood", 1),
        "<b>pair": save_adapter(folder / "pair", 2, PAIR),
    }


def test_a_person_chooses_types_and_sees_label_probabilities_and_prompt(browser, adapters):
    with running(adapters) as (address, _, _):
        browser.call("Page.navigate", url=f"http://{address[0]}:{address[1]}/")
        browser.until("document.querySelectorAll('option').length === 2")
        assert browser.run("document.querySelector('#about').innerText").startswith("Task mood")
        browser.run(f"document.querySelector('textarea').value = {json.dumps(TEXTS[0])}")
        browser.run("document.querySelector('#ask').click()")
        browser.until("document.querySelector('.answer') !== null")
        expected = Predictor.load(adapters["mood"]).predict([TEXTS[0]])[0]
        seen = browser.run("document.querySelector('#said').innerText")
        assert browser.run("document.querySelector('.answer').innerText") == expected.label
        assert f"{100 * expected.confidence:.1f} %" in seen
        assert f"prompt {expected.prompt}" in seen
        # names are text and never markup; two fields are asked for
        browser.run("var s = document.querySelector('#adapter'); s.value = '<b>pair';"
                    "s.dispatchEvent(new Event('change'))")  # fmt: skip
        labels = browser.run(
            "[...document.querySelectorAll('#fields label')].map(x => x.innerText)"
        )
        assert labels == ["one", "two"]
        assert browser.run("document.querySelectorAll('b').length") == 0
        # every control has a name, and nothing is wider than a phone
        assert browser.run(
            "[...document.querySelectorAll('textarea,select,input')].every(x => x.labels.length)"
        )
        browser.call("Emulation.setDeviceMetricsOverride", width=375, height=700,
                     deviceScaleFactor=1, mobile=True)  # fmt: skip
        assert browser.run("document.documentElement.scrollWidth") <= 375


def test_a_server_with_a_token_asks_a_person_for_it(browser, adapters):
    with running(adapters, token="s3cret") as (address, _, _):
        browser.call("Page.navigate", url=f"http://{address[0]}:{address[1]}/")
        browser.until("document.querySelector('#locked')?.hidden === false")
        browser.run("var t = document.querySelector('#token'); t.value = 's3cret';"
                    "t.dispatchEvent(new Event('change'))")  # fmt: skip
        browser.until("document.querySelectorAll('option').length === 2")


def test_the_page_brings_everything_itself(adapters):
    with running(adapters) as (address, _, _):
        status, headers, content = one(address, "GET", "/")
    assert status == 200
    assert "default-src 'none'" in headers["content-security-policy"]
    assert b"http://" not in content
    assert b"https://" not in content
