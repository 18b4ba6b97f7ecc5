"""An OpenAI-compatible server on this machine that counts what it is asked and misbehaves by request.

The name of the model says how: ``valid``, ``prose``, ``rate_limited_3`` (three times, then well) and so on.
"""

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Says = Callable[[dict[str, Any]], str]


def completion(text: str | None, usage: dict[str, Any] | None, reason: str = "stop", **message: Any) -> dict[str, Any]:
    told = {"role": "assistant", "content": text} | message
    body = {"id": "x", "object": "chat.completion", "created": 1, "model": "m",
            "choices": [{"index": 0, "message": told, "finish_reason": reason}]}  # fmt: skip
    return body | ({"usage": usage} if usage else {})


class Loopback:
    """
    Args:
        says: the answer of a model that behaves, to a request's body.
        usage: what it says a reply took.
        slow_s: how late the slow one is.
    """

    def __init__(self, says: Says, usage: tuple[int, int] = (100, 50), slow_s: float = 3.0) -> None:
        self.says, self.slow_s = says, slow_s
        self.usage = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
        self.bodies: list[dict[str, Any]] = []
        self.answered = 0
        self.lock = threading.Lock()
        loopback = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *given: Any) -> None:
                pass

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with loopback.lock:
                    loopback.bodies.append(body)
                    number = sum(one["model"] == body["model"] for one in loopback.bodies)
                loopback.reply(self, body, number)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def calls(self) -> int:
        return len(self.bodies)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/v1"

    def __enter__(self) -> "Loopback":
        return self

    def __exit__(self, *given: Any) -> None:
        self.server.shutdown()
        self.server.server_close()

    def reply(self, to: BaseHTTPRequestHandler, body: dict[str, Any], number: int) -> None:
        name, good = body["model"], lambda: completion(self.says(body), self.usage)
        error = {"error": {"message": f"{name} it is", "type": name, "code": name}}
        if name == "dropped":
            to.close_connection = True
            to.connection.shutdown(2)
            return
        if name == "slow":
            time.sleep(self.slow_s)
        if name.startswith("rate_limited"):
            times = int(name.rpartition("_")[2]) if name[-1].isdigit() else 10**9
            if number <= times:
                self.send(to, 429, error)
                return
        answers: dict[str, tuple[int, Any]] = {
            "prose": (200, completion("Certainly! Here is my idea: look at the gradients.", self.usage)),
            "truncated": (200, completion(self.says(body)[:20], self.usage, "length")),
            "refused": (200, completion(None, self.usage, refusal="I cannot help with that.")),
            "filtered": (200, completion("", self.usage, "content_filter")),
            "empty": (200, completion("", self.usage)),
            "null": (200, completion(None, self.usage)),
            "html": (200, "<html><body>a proxy's page</body></html>"),
            "string": (200, '"just a string"'),
            "no_choices": (200, completion("", self.usage) | {"choices": []}),
            "no_usage": (200, completion(self.says(body), None)),
            "zero_usage": (200, completion(self.says(body), dict.fromkeys(self.usage, 0))),
            "context": (400, {"error": {"message": "This model's maximum context length is 10 tokens.",
                                        "type": "invalid_request_error", "code": "context_length_exceeded"}}),
            "server_error": (500, error),
            "html_error": (503, "<html>unavailable</html>"),
            "auth": (401, error),
            "not_found": (404, error),
            "bad_request": (400, error),
        }  # fmt: skip
        status, answer = answers.get(name) or (200, good())
        self.send(to, status, answer)

    def send(self, to: BaseHTTPRequestHandler, status: int, answer: Any) -> None:
        raw = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        try:
            to.send_response(status)
            kind = "text/html" if isinstance(answer, str) and answer.startswith("<") else "application/json"
            to.send_header("content-type", kind)
            to.send_header("content-length", str(len(raw)))
            to.end_headers()
            to.wfile.write(raw)
        except OSError:  # whoever asked has gone
            return
        self.answered += status == 200
