"""The app: routes, and the layers a request passes before them."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from minicpm import __version__
from minicpm.server import chat, completions, embeddings, ollama, responses, responses_route, tokens
from minicpm.server.access_log import REQUEST_ID, AccessLog, LastNet
from minicpm.server.answers import Serving
from minicpm.server.body import BodyLimit
from minicpm.server.errors import APIError, add_handlers
from minicpm.server.guard import OPEN_PREFIX, Guard
from minicpm.server.metrics import CONTENT_TYPE
from minicpm.server.openapi import ERRORS

PAGE = Path(__file__).with_name("page")

# The page consists of this package's files only; it may send requests to this server only.
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".woff2": "font/woff2",
}


def create_app(serving: Serving, page: Path = PAGE) -> FastAPI:
    """The app over an engine; `page` is a folder with an index.html, which is served at / where it is there."""
    app = FastAPI(title="minicpm serve", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    settings = serving.settings
    add_handlers(app)
    for room in (chat, completions, responses_route, embeddings, tokens, ollama):
        app.include_router(room.router(serving))
    _add_models(app, serving)
    _add_health(app, serving)
    _add_page(app, page)
    # The last one added is the first one passed.
    app.add_middleware(HeadAsGet)
    app.add_middleware(BodyLimit, settings=settings)
    app.add_middleware(Guard, settings=settings, is_draining=lambda: serving.is_draining)
    app.add_middleware(LastNet)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "HEAD", "POST"),
            # Official clients send headers of their own, x-stainless-os and more. None of them gives access.
            allow_headers=("*",),
            allow_private_network=True,  # Chrome's preflight for pages of public sites that call a local server
            expose_headers=(REQUEST_ID, "Retry-After"),
        )
    app.add_middleware(AccessLog, count=serving.metrics.count_response)
    app.add_middleware(ollama.OllamaForm)
    return app


class HeadAsGet:
    """Answers HEAD as GET, without the body: programs that watch a server ask so."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_head(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        await self._app({**scope, "method": "GET"}, receive, send_head)


def _add_models(app: FastAPI, serving: Serving) -> None:
    model = serving.model
    models = [
        responses.Model(id=name, created=model.created, max_model_len=model.context_length) for name in model.names
    ]

    @app.get("/v1/models", responses=ERRORS)
    async def list_models() -> responses.Models:
        """The names of the model that is served."""
        return responses.Models(data=models)

    @app.get("/v1/models/{name:path}", responses=ERRORS)
    async def retrieve_model(name: str) -> responses.Model:
        """One of them."""
        return models[model.names.index(model.check_name(name))]


def _add_health(app: FastAPI, serving: Serving) -> None:
    @app.get("/health", responses=ERRORS)
    async def health() -> responses.Health:
        """Whether requests are answered."""
        if not serving.engine.is_alive:
            raise APIError(503, "the engine has ended; the log says why", kind="server_error", code="engine_dead")
        return responses.Health()

    @app.get(
        "/metrics",
        response_class=Response,
        responses={**ERRORS, 200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(serving.metrics.text(), headers={"Content-Type": CONTENT_TYPE})


def _add_page(app: FastAPI, page: Path) -> None:
    """Files are read now and served by their names alone: no path of a request reaches the disk."""
    if not (page / "index.html").is_file():
        return
    files = {path.name: path.read_bytes() for path in page.iterdir() if path.suffix in _MEDIA_TYPES}

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return _file("index.html")

    @app.get(OPEN_PREFIX + "{name}", include_in_schema=False)
    async def file(name: str) -> Response:
        return _file(name)

    def _file(name: str) -> Response:
        if name not in files:
            raise APIError(404, "the page has no such file", code="not_found")
        return Response(files[name], headers={"Content-Type": _MEDIA_TYPES[Path(name).suffix], **_PAGE_HEADERS})
