"""A server with the form of vLLM's completions endpoint, which remembers what it was sent."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer


@contextmanager
def completions_endpoint(text: str) -> Iterator[tuple[str, list[tuple[str, dict]]]]:
    """Answer every request with a text; yields the address, and (path, body) of every request."""
    requests: list[tuple[str, dict]] = []

    class Endpoint(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            requests.append((self.path, body))
            choice = {"index": 0, "text": text, "finish_reason": "stop", "logprobs": None}
            said = {"id": "1", "object": "text_completion", "created": 0, "model": "m"}
            answer = json.dumps({**said, "choices": [choice]}).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Endpoint) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1", requests
        finally:
            server.shutdown()
            thread.join()
