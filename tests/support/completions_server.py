"""An OpenAI-compatible `/v1/completions` on loopback over a small transformers model, with the habits in which servers differ."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch


@dataclass
class Habits:
    """How a server answers.

    Attributes:
        first: the first token's entry: "null", a "number", "missing" from the lists of log-probabilities, or "dropped" from all.
        generated: whether an echo lists the token generated after the prompt.
        takes: "ids" and texts, or only "texts".
        adds_bos: whether texts get the BOS token.
        tokens: tokens that are no text by themselves as "�", "bytes:\\xe2" or "" ; all tokens as "token_id:7"; "vocabulary".
        digits: to how many digits log-probabilities are rounded.
        failures: what the first requests get: a status, or "cut" for a connection that is cut.
        fails_from: from which request on all fail with status 500.
        shift: "after" if an echo gives ln p of each token in the place after it, "list" or "back" if its list is moved by one.
        echo, logprobs: "ours", or "no" if there is none; logprobs "generated" for those of generated tokens only, "content" in
            the form of chats, "zeros", "nan" or "positive"; "no top" without the largest.
        other_tokenizer: another one than the model's.
        offset: added to log-probabilities of what is read.
    """

    first: str = "null"
    generated: bool = True
    takes: str = "ids"
    adds_bos: bool = False
    tokens: str = "\ufffd"
    digits: int | None = None
    failures: list[Any] = field(default_factory=list)
    fails_from: int | None = None
    shift: str = ""
    echo: str = "ours"
    logprobs: str = "ours"
    other_tokenizer: Any = None
    offset: float = 0.0


class CompletionsServer:
    """Answers completions by a model, in as many threads as there are requests.

    Attributes:
        requests: the bodies of all requests.
        most_at_once: the most requests that were open at a time.
    """

    def __init__(self, model: Any, tokenizer: Any, habits: Habits) -> None:
        self.model, self.tokenizer, self.habits = model, habits.other_tokenizer or tokenizer, habits
        self.requests: list[dict[str, Any]] = []
        self.failures, self.most_at_once, self._open = list(habits.failures), 0, 0
        self._lock, self._forward = threading.Lock(), threading.Lock()

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """The JSON of an answer."""
        prompt = body["prompt"]
        prompts = prompt if isinstance(prompt, list) and not isinstance(prompt[0], int) else [prompt]
        with self._forward:
            choices = [self._choice(number, self._ids(one), body) for number, one in enumerate(prompts)]
        return {"object": "text_completion", "model": body["model"], "choices": choices[::-1]}  # the order is theirs

    def _ids(self, prompt: Any) -> list[int]:
        if isinstance(prompt, str):
            bos = [self.tokenizer.bos_token_id] if self.habits.adds_bos else []
            return bos + self.tokenizer(prompt, add_special_tokens=False).input_ids
        if self.habits.takes == "texts":
            raise ValueError("prompt must be a text")
        return list(prompt)

    def _choice(self, index: int, ids: list[int], body: dict[str, Any]) -> dict[str, Any]:
        generated, logits = self._generate(ids, body["max_tokens"])
        row = logits.float().log_softmax(-1)
        ids, echo = ids + generated, bool(body.get("echo")) and self.habits.echo == "ours"
        start = 0 if echo else len(ids) - len(generated)
        text = self.tokenizer.decode(ids[start:])
        logprobs = self._logprobs(ids, row, start, len(ids) - len(generated), echo) if body.get("logprobs") else None
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": "length"}

    @torch.no_grad()
    def _generate(self, ids: list[int], number: int) -> tuple[list[int], torch.Tensor]:
        generated: list[int] = []
        for _ in range(number):
            generated.append(int(self.model(torch.tensor([ids + generated])).logits[0, -1].argmax()))
        return generated, self.model(torch.tensor([ids + generated])).logits[0]

    def _logprobs(self, ids: list[int], row: torch.Tensor, start: int, end: int, echo: bool) -> Any:
        habits = self.habits
        own = [None] + [row[i - 1, ids[i]].item() for i in range(1, len(ids))]
        top = [None] + [self._top(row[i - 1], ids[i]) for i in range(1, len(ids))]
        if echo:
            own, top = self._moved(ids, row, own, top, end)
        own = [self._number(value, echo and i < end) for i, value in enumerate(own)]
        top = [
            entry and {key: self._number(x, echo and i < end) for key, x in entry.items()}
            for i, entry in enumerate(top)
        ]
        stop = len(ids) if habits.generated or not echo else end
        lists = {
            "tokens": [self._text(i) for i in ids[start:stop]], "token_logprobs": own[start:stop],
            "top_logprobs": top[start:stop], "text_offset": [0] * (stop - start),
        }  # fmt: skip
        return self._first(lists, echo)

    def _moved(self, ids, row, own, top, end):
        if self.habits.shift == "after":
            own = [None] + [row[i, ids[i]].item() for i in range(1, len(ids))]
            top = [None] + [self._top(row[i], ids[i]) for i in range(1, len(ids))]
        if self.habits.shift == "list":
            own, top = [*own[1:], own[-1]], [*top[1:], top[-1]]
        if self.habits.shift == "back":
            own, top = [own[0], *own[:-1]], [top[0], *top[:-1]]
        if self.habits.logprobs == "generated":
            own, top = [None] * end + own[end:], [None] * end + top[end:]
        return own, top

    def _first(self, lists: dict[str, list[Any]], echo: bool) -> Any:
        habits = self.habits
        if habits.logprobs == "no":
            return None
        if habits.logprobs == "content":
            return {"content": []}
        if habits.logprobs == "no top":
            del lists["top_logprobs"]
        if echo and habits.first == "number":
            lists["token_logprobs"][0] = -7.0
        if echo and habits.first in ("missing", "dropped"):
            names = ("token_logprobs", "top_logprobs") if habits.first == "missing" else tuple(lists)
            lists |= {name: lists[name][1:] for name in names}
        return lists

    def _number(self, value: Any, read: bool) -> Any:
        if value is None or not read:
            return value if value is None or self.habits.digits is None else round(value, self.habits.digits)
        special = {"zeros": 0.0, "nan": float("nan"), "positive": 1.5}
        value = special.get(self.habits.logprobs, value + self.habits.offset)
        return value if self.habits.digits is None else round(value, self.habits.digits)

    def _top(self, row: torch.Tensor, token: int) -> dict[str, float]:
        """The token's own entry and then the likeliest, as vLLM lists them; equal texts are one entry."""
        best = int(row.argmax())
        return {self._text(token): row[token].item(), self._text(best): row[best].item()}

    def _text(self, token: int) -> str:
        text = self.tokenizer.decode([token])
        if self.habits.tokens == "token_id":
            return f"token_id:{token}"
        if self.habits.tokens == "vocabulary":
            return self.tokenizer.convert_ids_to_tokens(token)
        if "\ufffd" not in text or self.habits.tokens == "\ufffd":
            return text
        return self.habits.tokens and f"bytes:\\x{token:02x}"

    def fails(self, body: dict[str, Any]) -> Any:
        """What a request gets in place of an answer; counts it."""
        with self._lock:
            self.requests.append(body)
            if self.habits.fails_from is not None and len(self.requests) >= self.habits.fails_from:
                return 500
            return self.failures.pop(0) if self.failures else None

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        with self._lock:
            self._open += 1
            self.most_at_once = max(self.most_at_once, self._open)
        yield
        with self._lock:
            self._open -= 1


class _Handler(BaseHTTPRequestHandler):
    serves: CompletionsServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.serves.open():
            status, answer = self._answer(body)
        if status == "cut":
            self.connection.close()
            return
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _answer(self, body: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        failure = self.serves.fails(body) if self.path == "/v1/completions" else 404
        if failure:
            return failure, {"error": f"status {failure}"}
        try:
            return 200, self.serves.answer(body)
        except ValueError as error:
            return 400, {"error": str(error)}

    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, *arguments: Any) -> None:
        """Nothing on the terminal."""


@contextlib.contextmanager
def served(model: Any, tokenizer: Any, **habits: Any) -> Iterator[tuple[str, CompletionsServer]]:
    """The address of a running server, and the server."""
    server = CompletionsServer(model, tokenizer, Habits(**habits))
    http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"serves": server}))
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_port}/v1/completions", server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
