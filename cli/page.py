"""Build the page of the playground: four tabs of gradio components. `cli/playground.py` loads models and serves it.

User input and generated text reach the page escaped, or as data that `lens.js` inserts as text, because gradio
evaluates templates.
"""

import base64
import html
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from groundup.cli.chat import CHAT_TEMPERATURE
from groundup.cli.inspection import Inspection, Lens
from groundup.common.errors import InputError, user_path
from groundup.common.files import CARD_FILE, CURVE_FILE
from groundup.inference.generation import Sampling, can_slide, encode_prompt, own_sampling
from groundup.inference.loading import context_of
from groundup.inference.writing import Messages, Writing, conversation_ids

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # gradio reads it when it is imported
try:
    import gradio as gr
except ImportError as error:
    raise InputError("the playground needs gradio: pip install 'groundup[playground]'") from error

REFRESH = 0.04  # seconds between two updates of the page while a text is written
_FILES = Path(__file__).parent


@dataclass(frozen=True)
class Player:
    """A model shown on the page, with its tokenizer."""

    name: str
    source: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    lens: Lens
    answers: bool
    """True if it was trained on conversations."""


def build_page(players: list[Player]) -> gr.Blocks:
    """Return the page. Nothing is loaded or computed before a visitor asks for it."""
    with gr.Blocks(title="groundup playground", analytics_enabled=False) as page:
        models = " · ".join(f"**{player.name}**, {player.model.num_parameters():,} parameters" for player in players)
        gr.Markdown(f"## groundup playground\n{models}")
        with gr.Tabs() as tabs:
            with gr.Tab("Complete", id="complete"):
                text, see_inside = _complete_tab(players)
            with gr.Tab("Chat", id="chat"):
                _chat_tab(players)
            with gr.Tab("Inside", id="inside"):
                bring_inside = _inside_tab(players)
            with gr.Tab("About", id="about"):
                _about_tab(players)
        see_inside.click(lambda: gr.Tabs(selected="inside"), None, tabs)
        bring_inside(see_inside, text)
    return page


def _sampling_controls(player: Player, tokens: int, **usual: Any) -> list[gr.components.Component]:
    """Return the controls for temperature, top-k, top-p, length and seed, in the order of `_sampling`.

    They begin where the model's generation config says, else as usual.
    """
    start = Sampling(**usual | own_sampling(player.model))
    with gr.Accordion("Sampling", open=False):
        with gr.Row():
            controls: list[gr.components.Component] = [
                gr.Slider(
                    0,
                    2,
                    min(start.temperature, 2),
                    step=0.05,
                    label="temperature",
                    info="0: always the likeliest token",
                ),
                gr.Slider(0, 200, min(start.top_k, 200), step=1, label="top-k", info="sample from this many; 0: all"),
                gr.Slider(
                    0.05,
                    1,
                    max(start.top_p, 0.05),
                    step=0.01,
                    label="top-p",
                    info="sample from this probability mass; 1: all",
                ),
            ]
        with gr.Row():
            controls += [
                gr.Slider(1, 2000, tokens, step=1, label="length [tokens]", info="most tokens to generate"),
                gr.Number(None, label="seed", precision=0, info="empty: a new one each time", placeholder="new"),
            ]
    return controls


def _sampling(temperature: float, top_k: int, top_p: float, tokens: int, seed: int | None) -> Sampling:
    seed = random.randrange(10_000) if seed is None else int(seed)
    return Sampling(int(tokens), temperature, int(top_k), top_p, seed)


# ---------------------------------------------------------------------------------------------------------------------
# Complete


def _complete_tab(players: list[Player]) -> tuple[gr.State, gr.Button]:
    """Build the tab that continues a prompt; return the first model's text and the button that inspects it."""
    prompt = gr.Textbox(label="prompt", placeholder="A text to continue; Enter starts", lines=1, max_lines=8)
    with gr.Row():
        write = gr.Button("Write", variant="primary", size="sm", min_width=80)
        stop = gr.Button("Stop", size="sm", min_width=80)
        see_inside = gr.Button("See inside", size="sm", min_width=80)
    columns = []
    with gr.Row():
        for player in players:
            with gr.Column(min_width=300):  # on a phone one below the other
                columns.append(gr.HTML(_text_and_note(player if len(players) > 1 else None)))
    controls = _sampling_controls(players[0], tokens=200)
    text = gr.State("")

    def complete(prompt: str, *values: Any) -> Iterator[list[Any]]:
        sampling = _sampling(*values)

        def ids_of(player: Player) -> list[int]:
            return encode_prompt(player.tokenizer, prompt)

        writings = [_begin(player, ids_of, sampling, past_context=True) for player in players]
        titled = players if len(players) > 1 else [None]
        for _ in _rounds(writings):
            shown = [_written(player, prompt, writing, sampling) for player, writing in zip(titled, writings)]
            yield [*shown, prompt + getattr(writings[0], "text", "")]

    events: list[Any] = [on(complete, [prompt, *controls], [*columns, text]) for on in (prompt.submit, write.click)]
    stop.click(None, cancels=events)
    return text, see_inside


def _begin(
    player: Player, ids_of: Callable[[Player], list[int]], sampling: Sampling, *, past_context: bool = False
) -> Writing | str:
    """Return the text that a model is about to generate, or the error message."""
    try:
        ids = ids_of(player)
        if len(ids) > context_of(player.model) and not (past_context and can_slide(player.model)):
            raise InputError(f"{len(ids):,} tokens do not fit into the context of {context_of(player.model):,}")
        own = own_sampling(player.model)  # what the page has no control for
        sampling = replace(sampling, **{name: own[name] for name in ("min_p", "repetition_penalty") if name in own})
        return Writing(player.model, player.tokenizer, ids, sampling, past_context=past_context)
    except InputError as error:
        return str(error)


def _rounds(writings: list[Writing | str]) -> Iterator[None]:
    """Generate all texts in turn, piece by piece; yield when the page should be updated, at most every `REFRESH`."""
    growing = [iter(writing) for writing in writings if isinstance(writing, Writing)]
    shown = 0.0
    while growing:
        growing = [pieces for pieces in growing if next(pieces, None) is not None]
        if time.monotonic() - shown >= REFRESH:
            yield
            shown = time.monotonic()
    yield


def _written(player: Player | None, prompt: str, writing: Writing | str, sampling: Sampling) -> str:
    """Return a prompt and its continuation as HTML."""
    if isinstance(writing, str):
        return _text_and_note(player, note=writing)
    notes = _notes(writing, sampling)
    return _text_and_note(
        player, f"<span class='prompt'>{html.escape(prompt)}</span>{html.escape(writing.text)}", notes
    )


def _text_and_note(player: Player | None, text: str = "", note: str = "") -> str:
    title = f"<p><b>{html.escape(player.name)}</b></p>" if player else ""
    return f"{title}<div class='written'>{text}</div><p class='note'>{html.escape(note)}</p>"


# ---------------------------------------------------------------------------------------------------------------------
# Chat


def _chat_tab(players: list[Player]) -> None:
    for player in players:
        if not player.answers:
            gr.Markdown(f"{player.name} was not trained on conversations: it continues each line on its own.")
    histories = [gr.State([]) for _ in players]
    with gr.Row():
        talks = [
            gr.Chatbot(
                label=player.name, height=420, render_markdown=False, buttons=[], feedback_options=None, min_width=300
            )
            for player in players
        ]
    notes = gr.HTML("")
    line = gr.Textbox(label="message", placeholder="Say something; Enter sends", lines=1, max_lines=8)
    with gr.Row():
        send = gr.Button("Send", variant="primary", size="sm", min_width=80)
        stop = gr.Button("Stop", size="sm", min_width=80)
        reset = gr.Button("New", size="sm", min_width=80)
    system = gr.Textbox(label="system", placeholder="The system message", lines=1)
    controls = _sampling_controls(players[0], tokens=300, temperature=CHAT_TEMPERATURE)

    def talk(line: str, system: str, *values: Any) -> Iterator[list[Any]]:
        sampling, pasts = _sampling(*values[: len(controls)]), values[len(controls) :]
        if not line.strip():
            yield [line, *(gr.skip() for _ in range(2 * len(players) + 1))]
            return
        asked = [[*past, {"role": "user", "content": line}] for past in pasts]
        starts = [_begin(player, _asking(system, talk), sampling) for player, talk in zip(players, asked)]
        cleared = ""  # once: what is typed while a model answers is kept
        for _ in _rounds(starts):
            texts = [start.text if isinstance(start, Writing) else start for start in starts]
            now = [[*talk, {"role": "assistant", "content": text}] for talk, text in zip(asked, texts)]
            written = [(player, start) for player, start in zip(players, starts) if isinstance(start, Writing)]
            said = (html.escape(f"{player.name}: {_notes(writing, sampling)}") for player, writing in written)
            yield [cleared, *map(_shown, now), *now, "".join(f"<p class='note'>{note}</p>" for note in said)]
            cleared = gr.skip()

    everything = [line, *talks, *histories, notes]
    inputs = [line, system, *controls, *histories]
    events: list[Any] = [on(talk, inputs, everything) for on in (line.submit, send.click)]
    stop.click(None, cancels=events)
    for on in (reset.click, *(talk.clear for talk in talks)):
        on(lambda: ["", *([] for _ in range(2 * len(players))), ""], None, everything, cancels=events)


def _asking(system: str, talk: Messages) -> Callable[[Player], list[int]]:
    """Return a function that encodes a conversation, after the system message, for a model."""

    def ids_of(player: Player) -> list[int]:
        if not player.answers:
            return encode_prompt(player.tokenizer, talk[-1]["content"])
        opening = [{"role": "system", "content": system}] if system.strip() else []
        context = context_of(player.model)
        return conversation_ids(player.tokenizer, [*opening, *talk], context, context // 4)[0]

    return ids_of


def _shown(talk: Messages) -> Messages:
    """Return a conversation with its messages escaped, because gradio's chatbot interprets them as HTML."""
    return [message | {"content": html.escape(message["content"], quote=False)} for message in talk]


def _notes(writing: Writing, sampling: Sampling) -> str:
    return f"{writing.summary}, seed {sampling.seed}" + (f"; {writing.ending}" if writing.ending else "")


# ---------------------------------------------------------------------------------------------------------------------
# Inside


def _inside_tab(players: list[Player]) -> Callable[[gr.Button, gr.State], None]:
    """Build the tab that inspects a text; return a function that connects a button to it."""
    named = {player.name: player for player in players}
    which = gr.Radio(list(named), value=players[0].name, label="model", visible=len(players) > 1)
    text = gr.Textbox(label="text", placeholder="A text to inspect; Enter starts", lines=1, max_lines=8)
    look = gr.Button("Look", variant="primary", size="sm")
    lens = gr.HTML(
        value=None,
        html_template=(_FILES / "lens.html").read_text(encoding="utf-8"),
        js_on_load=(_FILES / "lens.js").read_text(encoding="utf-8"),
        apply_default_css=False,
    )
    seen = gr.State(None)

    def inspect(name: str, text: str) -> list[Any]:
        try:
            inspection = named[name].lens.look(text)
        except InputError as error:
            raise gr.Error(str(error)) from error
        return [inspection, lens_value(inspection, 1)]

    def turn_to(inspection: Inspection, event: gr.EventData) -> dict[str, Any]:
        return lens_value(inspection, event.layer)

    for on in (text.submit, look.click, which.input):
        on(inspect, [which, text], [seen, lens])
    lens.pick(turn_to, seen, lens, show_progress="hidden")

    def bring(button: gr.Button, written: gr.State) -> None:
        button.click(lambda text: text, written, text).then(inspect, [which, text], [seen, lens])

    return bring


def lens_value(inspection: Inspection, layer: int) -> dict[str, Any]:
    """Return the data for `lens.js`: the tokens and the attention maps of one layer (from 1), a byte per weight."""
    maps = None if inspection.attention is None else inspection.attention[layer - 1]
    loss = inspection.loss
    summary = f"{len(inspection.tokens):,} tokens" + (f", loss {loss:.3f} nats per token" if loss is not None else "")
    if inspection.left_out:
        summary += f"; only the first {len(inspection.tokens)} are shown, {inspection.left_out:,} were left out"
    tokens = [
        asdict(token) | {"expected": [[candidate.text, candidate.probability] for candidate in token.expected]}
        for token in inspection.tokens
    ]
    return {
        "summary": summary,
        "tokens": tokens,
        "layers": 0 if inspection.attention is None else len(inspection.attention),
        "layer": layer,
        "heads": 0 if maps is None else len(maps),
        "maps": None if maps is None else base64.b64encode(maps.tobytes()).decode(),
    }


# ---------------------------------------------------------------------------------------------------------------------
# About


def _about_tab(players: list[Player]) -> None:
    with gr.Row():
        for player in players:
            with gr.Column(min_width=320):
                gr.HTML(about_html(player))
                path = user_path(player.source) / CARD_FILE
                text = path.read_text(encoding="utf-8") if path.is_file() else ""
                if card := re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL):  # without its YAML header
                    with gr.Accordion("The card", open=len(players) == 1):
                        gr.Markdown(card, latex_delimiters=[], header_links=False)


def about_html(player: Player) -> str:
    """Return the sizes of a model, and its training curve if there is one, as HTML."""
    config = player.model.config.get_text_config()
    facts = {
        "parameters": f"{player.model.num_parameters():,}",
        "kind": config.model_type,
        "layers": getattr(config, "num_hidden_layers", None),
        "heads": getattr(config, "num_attention_heads", None),
        "width": getattr(config, "hidden_size", None),
        "vocabulary": f"{len(player.tokenizer):,}",
        "context": f"{context_of(player.model):,} tokens",
        "device": player.model.device,
    }
    rows = "".join(
        f"<tr><td>{name}</td><td>{html.escape(str(value))}</td></tr>" for name, value in facts.items() if value
    )
    curve = user_path(player.source) / CURVE_FILE
    image = ""
    if curve.is_file():
        data = base64.b64encode(curve.read_bytes()).decode()
        image = f"<img class='curve' alt='training curve' src='data:image/png;base64,{data}'>"
    return f"<h3>{html.escape(player.name)}</h3><table class='facts'>{rows}</table>{image}"
