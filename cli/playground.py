"""A web page on this machine: write with a model, talk with it, see how it works, two models side by side.

The page is gradio's. It listens on 127.0.0.1 alone, answers no other host name, and a content security policy keeps
the browser from loading anything from elsewhere, whatever stands in a card or in what a model writes.
"""

import threading
from pathlib import Path
from typing import Any

from groundup.cli.inspection import Lens
from groundup.cli.page import Player, build_page, gr
from groundup.cli.settings import PlaygroundSettings
from groundup.cli.writing import can_converse
from groundup.common.console import say
from groundup.common.errors import InputError
from groundup.common.settings import verb
from groundup.evaluation.generation import lay_out_for_decoding
from groundup.evaluation.loading import load_model

HOST = "127.0.0.1"
VISITORS = 8  # texts written at once; more wait in line
_FILES = Path(__file__).parent
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; form-action 'self'; "
    "frame-ancestors 'none'"
)
_SANS = ["ui-sans-serif", "system-ui", "sans-serif"]
_MONO = ["ui-monospace", "Consolas", "monospace"]


@verb(PlaygroundSettings)
def playground(settings: PlaygroundSettings) -> None:
    """Show one or two models on a web page until Ctrl-C."""
    if not 1 <= len(settings.model) <= 2:
        raise InputError("the playground takes one or two models: give --model FOLDER, or --model FOLDER FOLDER")
    players = [load_player(source, settings.trust_remote_code) for source in settings.model]
    page = build_page(players)
    url = serve(page, settings.port)
    say(f"open {url} in a browser; Ctrl-C ends")
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        say("closed")
    finally:
        page.close(verbose=False)


def load_player(source: str, trust_remote_code: bool = False) -> Player:
    """Load a model for the page. Raises `InputError` where there is none."""
    model, tokenizer = load_model(source, trust_remote_code=trust_remote_code)
    lay_out_for_decoding(model)
    name = "/".join(Path(source).parts[-2:]) if Path(source).exists() else source
    player = Player(name, source, model, tokenizer, Lens(model, tokenizer), can_converse(source, tokenizer))
    player.lens.look(".")  # the first pass through a model is the slowest: nobody should have to wait for it
    return player


def serve(page: gr.Blocks, port: int | None = None) -> str:
    """Serve a page on this machine and return its address. Raises `InputError` for a port that is taken."""
    from starlette.middleware import Middleware  # gradio brings it: without gradio the page's own error comes first
    from starlette.middleware.base import BaseHTTPMiddleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    guards = [
        Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"]),  # another name would be rebound DNS
        Middleware(BaseHTTPMiddleware, dispatch=_add_policy),
    ]
    try:
        _, url, _ = page.queue(default_concurrency_limit=VISITORS).launch(
            server_name=HOST,
            server_port=port,
            share=False,
            quiet=True,
            inbrowser=False,
            prevent_thread_lock=True,
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
    except OSError as error:
        raise InputError(f"cannot listen on {HOST}, port {port or '7860 to 7959'}: choose another --port") from error
    return url


async def _add_policy(request: Any, answer: Any) -> Any:
    response = await answer(request)
    response.headers["Content-Security-Policy"] = _POLICY
    return response
