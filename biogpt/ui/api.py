"""``/v1``: what programs ask for in the manner of OpenAI's API, on the page's own port.

JSON in, JSON out. An error is ``{"error": {"message", "type", "param", "code"}}``; whatever is wrong with a
body is 400, an unknown key too, as OpenAI's API answers it.
"""

import html
import json
import math
import time
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import aclosing, closing
from dataclasses import asdict
from functools import partial
from threading import Event
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp

from biogpt.generation.tree import TreeOptions
from biogpt.serving.inspection import piece_after, read
from biogpt.serving.service import TextService, with_pauses
from biogpt.serving.shelf import NotOffered, OnShelf, Shelf
from biogpt.serving.tree import TextTree, grown
from biogpt.text.documents import Document
from biogpt.text.plain import is_blank
from biogpt.text.results import OnProgress
from biogpt.ui.bodies import (
    ClassifyRequest,
    CompletionRequest,
    NerRequest,
    ScoreRequest,
    TreeRequest,
    WrongAnswer,
)
from biogpt.ui.classify import Labeller
from biogpt.ui.completions import Completion, Piece, Refused
from biogpt.ui.door import Door, Events, Line, from_thread, refusal, wrong
from biogpt.ui.entities import Tagger
from biogpt.ui.inputs import as_given, passages, sendable
from biogpt.ui.requests import Requests
from biogpt.ui.runs import label_all, last_of
from biogpt.ui.status import REFUSALS
from biogpt.ui.tree import told

# With those of the page no more than run and wait at one model: none is refused halfway.
_WRITING = 48
_READING = 32  # requests that wait for the one whose texts are read
# Proxies end what has been silent for a minute; of comments, clients take no notice.
_PAUSE, _COMMENT = 15.0, b": it goes on\n\n"
_MOST_SCORED = 100_000  # characters of a request, each token of which is told

_DOCS = """<!doctype html><html lang="en"><meta charset="utf-8"><title>BioGPT for programs</title>
<style>body {{font: 16px/1.5 system-ui; max-width: 60rem; margin: 2rem auto; padding: 0 1rem}}
td, th {{text-align: left; vertical-align: top; padding: .2rem 1rem .2rem 0}}</style>
<h1>BioGPT for programs</h1>
<p>{about} The same for machines: <a href="openapi.json">openapi.json</a>.</p>{calls}
</html>"""
_ABOUT = (
    "In the manner of OpenAI's API: JSON in, JSON out; null is as if a key were left out. Errors are "
    '{"error": {"message", "type", "param", "code"}}, with 400 for whatever is wrong with a body.'
)


class Api:
    """What ``/v1`` does.

    Args:
        shelf: of the models that write, and tell how likely texts are.
        tagger: finds entities.
        labeller: labels texts.
    """

    def __init__(self, shelf: Shelf, tagger: Tagger, labeller: Labeller) -> None:
        self.shelf, self.tagger, self.labeller = shelf, tagger, labeller
        self._writing, self._reading = Line(_WRITING, 0), Line(1, _READING)
        self._begun = int(time.time())

    def _model(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._begun, "owned_by": "biogpt"}

    async def models(self) -> dict[str, Any]:
        """List the language models that a request may name; the first one is the page's own."""
        return {"object": "list", "data": [self._model(name) for name in self.shelf.names()]}

    async def model(self, name: str) -> dict[str, Any]:
        """Tell whether a language model is there."""
        name = self.shelf.check(name)
        if name not in self.shelf.names():
            raise NotOffered(f"model {as_given(name)} is not on this machine; see /v1/models")
        return self._model(name)

    async def complete(self, asked: CompletionRequest) -> Response:
        """Continue a biomedical text. The model completes; it does not follow instructions."""
        completion = Completion(self.shelf, asked)
        pieces = with_pauses(self._pieces(completion), _PAUSE)
        if asked.stream:
            first = await anext(
                pieces
            )  # what is refused is refused with its status, unless it stands in line
            return Events(self._events(completion, asked, first, pieces))
        async with aclosing(pieces):
            return JSONResponse(completion.whole([piece async for piece in pieces if piece is not None]))

    async def _pieces(self, completion: Completion) -> AsyncGenerator[Piece, None]:
        async with self._writing.turn(), aclosing(from_thread(completion.pieces)) as pieces:
            async for piece in pieces:
                yield piece

    async def _events(
        self,
        completion: Completion,
        asked: CompletionRequest,
        first: Piece | None,
        later: AsyncGenerator[Piece | None, None],
    ) -> AsyncGenerator[bytes, None]:
        async with aclosing(later):
            yield _COMMENT if first is None else _event(completion.event(first))
            try:
                async for piece in later:
                    if piece is None:
                        yield _COMMENT
                    elif piece.text or piece.tokens or piece.finish_reason:
                        yield _event(completion.event(piece))
            except Exception as error:  # of whatever kind: the status is sent already
                yield b"data: " + refusal(error).body + b"\n\n"
                return
        if asked.stream_options is not None and asked.stream_options.include_usage:
            yield _event(completion.event(None))
        yield b"data: [DONE]\n\n"

    async def tree(self, asked: TreeRequest) -> dict[str, Any]:
        """Tell what is likely to come next, as a tree of tokens with their probabilities."""
        if is_blank(asked.prompt):
            raise Refused("prompt is empty; give the start of a text", "prompt")
        model = self.shelf.check(asked.model or self.shelf.default)
        async with (
            self._writing.turn(),
            aclosing(from_thread(partial(_grown, self.shelf, model, asked))) as steps,
        ):
            trees = [tree async for tree in steps if tree is not None]
        prompt = trees[-1].prompt
        usage = {"prompt_tokens": prompt.length, "total_tokens": prompt.length + len(trees[-1].nodes)}
        return {"object": "tree", **told(sendable(model), trees[-1]), "usage": usage}

    async def score(self, asked: ScoreRequest) -> dict[str, Any]:
        """Tell how likely texts are: bits per byte, and each token's log-probability; nothing is written.

        The end of a text is not scored.
        """
        documents = _documents(asked.input)
        size = sum(len(document.text) for document in documents)
        if size > _MOST_SCORED:
            raise Refused(f"input has {size:,} characters; expected up to {_MOST_SCORED:,}", "input")
        model = OnShelf(self.shelf, asked.model)
        async with self._reading.turn():
            run = await last_of(label_all(model, documents, partial(_scores, asked.top_logprobs)))
        positions = sum(row["positions"] for row in run.results)
        usage = {"prompt_tokens": positions, "total_tokens": positions}
        return _listed(model.name, run.results) | {"usage": usage}

    async def ner(self, asked: NerRequest) -> dict[str, Any]:
        """Find the named entities of texts: diseases, chemicals, genes and so on."""
        documents = _documents(asked.input)
        async with self._reading.turn():
            found = await self.tagger.entities_of(documents, asked.types, asked.min_score)
        rows = [{"entities": [asdict(entity) for entity in entities]} for entities in found]
        return _listed(self.tagger.recognizer.name, rows)

    async def classify(self, asked: ClassifyRequest) -> dict[str, Any]:
        """Label texts, or the sentences of abstracts, which then have offsets."""
        documents, labeller = _documents(asked.input), self.labeller
        trained = {"texts": labeller.texts.name, "sentences": labeller.sentences.name}
        name = trained.get(asked.task if asked.labels is None else "own")
        if name is None:
            name = self.shelf.check(asked.model or self.shelf.default)
        elif asked.model is not None:
            raise Refused(f"model compares labels of your own; leave it out, {name} labels these", "model")
        async with self._reading.turn():
            found = await labeller.labels_of(
                documents, asked.task, asked.labels, asked.threshold, asked.model
            )
        return _listed(name, [{"labels": rows} for rows in found])


def api_of(shelf: Shelf, tagger: Tagger, labeller: Labeller, stopping: Event, requests: Requests) -> ASGIApp:
    """The ASGI application to be mounted at ``/v1``.

    Args:
        stopping: set once requests are to be refused.
        requests: are told of each.
    """
    api = Api(shelf, tagger, labeller)
    wrongs: dict[int | str, dict[str, Any]] = {"default": {"model": WrongAnswer, "description": "An error"}}
    app = FastAPI(title="BioGPT", description=_ABOUT, docs_url=None, redoc_url=None, responses=wrongs)
    app.get("/models")(api.models)
    app.get("/models/{name:path}")(api.model)
    app.post("/completions")(api.complete)
    app.post("/score")(api.score)
    app.post("/tree")(api.tree)
    app.post("/classify")(api.classify)
    if tagger.recognizer.expected:
        app.post("/ner")(api.ner)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(_docs(app.openapi()))

    @app.exception_handler(RequestValidationError)
    async def wrong_body(request: Request, error: RequestValidationError) -> JSONResponse:
        return _wrong_body(error, _arguments(app.openapi(), request.scope["route"].path))

    @app.exception_handler(HTTPException)
    async def wrong_call(_: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 400:  # JSON that goes beyond what Python reads
            return wrong(400, "the body is no JSON object; send one")
        return wrong(error.status_code, f"{error.detail}; see /v1/docs", headers=error.headers)

    async def failed(_: Request, error: Exception) -> JSONResponse:
        return refusal(error, shelf.allowed is None)

    for kind in (*REFUSALS, Exception):
        app.add_exception_handler(kind, failed)
    return Door(app, stopping, requests)


def _documents(given: str | list[str]) -> list[Document]:
    try:
        return passages([given] if isinstance(given, str) else given)
    except ValueError as error:
        raise Refused(str(error), "input") from error


def _listed(model: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    data = [{"index": index, **row} for index, row in enumerate(rows)]
    return {"object": "list", "model": sendable(model), "data": data}


def _event(body: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(body)}\n\n".encode()


def _grown(shelf: Shelf, model: str, asked: TreeRequest) -> Generator[TextTree | None, None, None]:
    for generator in shelf.coming(model):
        if generator is None:
            yield None
    assert generator is not None
    options = TreeOptions(asked.branches, asked.depth, asked.least, asked.width)
    prompt = generator.prompt(sendable(asked.prompt))
    if prompt.room < asked.depth:
        raise Refused(
            f"{prompt.length:,} tokens of prompt and depth {asked.depth} are more than the model's "
            f"{prompt.length + prompt.room:,} positions; shorten the prompt, or ask for less depth",
            "prompt" if prompt.room < 1 else "depth",
            "context_length_exceeded",
        )
    tree = TextTree(prompt)
    with closing(grown(generator, tree, options)) as steps:
        for count in steps:
            yield None if count is None else tree


def _scores(top: int, generator: TextService, texts: list[str], progress: OnProgress) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for text in texts:
        progress(len(rows), len(texts))
        rows.append(_score(top, generator, text))
    return rows


def _score(top: int, generator: TextService, text: str) -> dict[str, Any]:
    prompt = generator.prompt(text)
    if prompt.room < 0:
        raise Refused(
            f"a text of input has {prompt.length:,} tokens, and the model "
            f"{prompt.length + prompt.room:,} positions; cut it or split it",
            "input",
            "context_length_exceeded",
        )
    tokens = []
    nats = 0.0
    for place, token in enumerate(generator.ask(read, prompt.ids, 1, top), start=1):
        start, end = prompt.offsets[place]
        before = prompt.ids[:place]
        likeliest = [
            {"text": piece_after(generator.tokenizer, before, other), "id": other, "logprob": logprob}
            for other, logprob in token.alternatives
        ]
        nats -= token.logprob
        told = {"text": text[start:end], "start": start, "end": end, "id": token.id}
        tokens.append({**told, "logprob": token.logprob, "top": likeliest})
    size = len(text.encode())
    bits = nats / math.log(2) / size
    return {"bits_per_byte": bits, "bytes": size, "positions": prompt.length, "tokens": tokens}


def _wrong_body(error: RequestValidationError, known: Sequence[str]) -> JSONResponse:
    """What is wrong with a body, by the first argument that is."""
    found = error.errors()
    first, where = found[0], found[0]["loc"][1:]
    if first["type"] == "json_invalid" or not isinstance(error.body, dict):
        return wrong(400, "the body is no JSON object; send one")
    if not where:
        return wrong(400, first["msg"].removeprefix("Value error, "))
    param = str(where[0])
    if first["type"] == "extra_forbidden" and len(where) == 1:
        return wrong(400, f"unknown argument {as_given(param)}; there are {', '.join(known)}", param)
    if first["type"] == "missing":
        return wrong(400, f"{param} is missing", param)
    said = [fault["msg"].removeprefix("Value error, ") for fault in found if fault["loc"][1:2] == where[:1]]
    given = as_given(error.body.get(param))
    return wrong(400, f"{param} is {given}: {', or '.join(dict.fromkeys(said))}", param)


def _body_schema(described: dict[str, Any], path: str) -> dict[str, Any]:
    """The schema of what is posted to a path."""
    posted = described["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    schema: dict[str, Any] = described["components"]["schemas"][posted["$ref"].rpartition("/")[2]]
    return schema


def _arguments(described: dict[str, Any], path: str) -> list[str]:
    return list(_body_schema(described, path)["properties"])


def _docs(described: dict[str, Any]) -> str:
    """A page of all calls, which loads nothing."""
    calls = ""
    for path, methods in described["paths"].items():
        for method, call in methods.items():
            words = " ".join(call["description"].split())
            calls += f"<h2><code>{method.upper()} /v1{path}</code></h2><p>{html.escape(words)}</p>"
            if method == "post":
                rows = _body_schema(described, path)["properties"].items()
                calls += f"<table>{''.join(_argument(name, about) for name, about in rows)}</table>"
    return _DOCS.format(about=html.escape(_ABOUT), calls=calls)


def _argument(name: str, about: dict[str, Any]) -> str:
    default = f"default {json.dumps(about['default'])}" if "default" in about else ""
    cells = (f"<code>{name}</code>", html.escape(about.get("description", "")), html.escape(default))
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
