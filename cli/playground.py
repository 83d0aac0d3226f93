"""The verb `playground`: a web page on this machine to generate text, chat and look inside one or two models.

gradio serves the page on 127.0.0.1 only and for no other host name. A content security policy keeps the browser from
loading anything from other hosts, whatever a card or a generated text contains.
"""

import os
import threading
from pathlib import Path
from typing import Any

from groundup.cli.inspection import Lens
from groundup.cli.page import Player, build_page, gr
from groundup.common.console import say
from groundup.common.errors import InputError, names_of, user_path
from groundup.common.settings import verb
from groundup.common.verbs import PlaygroundSettings
from groundup.inference.generation import lay_out_for_decoding
from groundup.inference.loading import load_model
from groundup.inference.writing import can_converse
from groundup.publishing.hub import fetch_model

HOST = "127.0.0.1"
VISITORS = 8  # texts written at once; more wait in line
_FILES = Path(__file__).parent
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; form-action 'self'; frame-ancestors "
)
_SHOWN_BY = "https://huggingface.co"  # the Hub shows a Space in a frame of its own page
_SANS = ["ui-sans-serif", "system-ui", "sans-serif"]
_MONO = ["ui-monospace", "Consolas", "monospace"]


@verb(PlaygroundSettings)
def playground(settings: PlaygroundSettings) -> None:
    """Serve a web page for one or two models until Ctrl-C."""
    if not 1 <= len(settings.model) <= 2:
        raise InputError(
            "the playground takes one or two models: groundup playground my_model, or my_model another_model"
        )
    names = names_of(settings.model)
    players = [load_player(source, settings.trust_remote_code, name) for source, name in zip(settings.model, names)]
    page = build_page(players)
    url = serve(page, settings.port)
    say(f"open {url} in a browser; Ctrl-C ends")
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        say("closed")
    finally:
        page.close(verbose=False)


def serve_as_space(model: str, revision: str) -> None:
    """Serve the playground of a Hub model as a Space, until it is stopped.

    The Space sets GRADIO_SERVER_NAME and GRADIO_SERVER_PORT to listen on; any other machine listens on 127.0.0.1.
    """
    page = build_page([load_player(str(fetch_model(model, revision)), name=model)])
    _launch(page, [_policy(_SHOWN_BY)], server_name=os.environ.get("GRADIO_SERVER_NAME", HOST))


def load_player(source: str, trust_remote_code: bool = False, name: str | None = None) -> Player:
    """Load a model for the page, under `name`. Raises `InputError` if there is no such model."""
    model, tokenizer = load_model(source, trust_remote_code=trust_remote_code)
    lay_out_for_decoding(model)
    name = name or ("/".join(Path(source).parts[-2:]) if user_path(source).exists() else source)
    player = Player(name, source, model, tokenizer, Lens(model, tokenizer), can_converse(source, tokenizer))
    player.lens.look(".")  # the first pass through a model is the slowest: nobody should have to wait for it
    return player


def serve(page: gr.Blocks, port: int | None = None) -> str:
    """Serve a page on this machine and return its address. Raises `InputError` for a port that is taken."""
    from starlette.middleware import Middleware  # gradio brings it: without gradio the page's own error comes first
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    own_names = Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])  # another would be rebound DNS
    try:
        guards = [own_names, _policy("'none'")]
        return _launch(page, guards, server_name=HOST, server_port=port, prevent_thread_lock=True)
    except OSError as error:
        raise InputError(f"cannot listen on {HOST}, port {port or '7860 to 7959'}: choose another --port") from error


def _launch(page: gr.Blocks, guards: list[Any], **where: Any) -> str:
    import matplotlib

    matplotlib.use("agg")  # or gradio looks for one at the first click, and somebody waits a second for it
    _, url, _ = page.queue(default_concurrency_limit=VISITORS).launch(
        **where,
        share=False,
        quiet=True,
        inbrowser=False,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        app_kwargs={"middleware": guards},
        theme=gr.themes.Default(font=_SANS, font_mono=_MONO),
        css=(_FILES / "page.css").read_text(encoding="utf-8"),
    )
    return url


def _policy(framed_by: str) -> Any:
    """Return the middleware that sets the content security policy and the pages that may frame this one."""
    from starlette.middleware import Middleware
    from starlette.middleware.base import BaseHTTPMiddleware

    async def add_policy(request: Any, answer: Any) -> Any:
        response = await answer(request)
        response.headers["Content-Security-Policy"] = _POLICY + framed_by
        return response

    return Middleware(BaseHTTPMiddleware, dispatch=add_policy)
