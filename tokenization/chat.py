"""Turn conversations into text and ids: the chat templates, and what in their text the assistant says.

A template marks what the assistant says by `{% generation %}`; the loss of `instruct` counts there and nowhere else.
`ChatEncoder` is the one way from messages to ids, for training, `generate` and `chat` alike.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from groundup.tokenization.folder import ASSISTANT, END, SYSTEM, USER, plain_backend

Message = dict[str, Any]  # role and content; an answer of weight 0 is read and not learnt

# The assistant's turn counts from after <|assistant|> up to and with <|end|>: a model must learn to stop, not to start.
CHAT_TEMPLATE = f"""\
{{%- for message in messages -%}}
{{%- if message['role'] == 'assistant' -%}}
{{{{- '{ASSISTANT}' -}}}}
{{%- generation -%}}{{{{- message['content'] + '{END}' -}}}}{{%- endgeneration -%}}
{{%- elif message['role'] == 'user' -%}}
{{{{- '{USER}' + message['content'] + '{END}' -}}}}
{{%- elif message['role'] == 'system' -%}}
{{{{- '{SYSTEM}' + message['content'] + '{END}' -}}}}
{{%- else -%}}
{{{{- raise_exception("the role must be 'system', 'user' or 'assistant', not '" + message['role'] + "'") -}}}}
{{%- endif -%}}
{{%- endfor -%}}
{{%- if add_generation_prompt -%}}{{{{- '{ASSISTANT}' -}}}}{{%- endif -%}}
"""

# Taori et al. 2023, as in Raschka's book, chapter 7: words instead of special tokens, so that any tokenizer with an
# end-of-text token will do. A system message takes the place of the first sentence.
ALPACA_TEMPLATE = """\
{%- if messages[0]['role'] == 'system' -%}
{{- messages[0]['content'] -}}
{%- else -%}
{{- 'Below is an instruction that describes a task. ' -}}
{{- 'Write a response that appropriately completes the request.' -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{{- '\\n\\n### Response:\\n' -}}
{%- generation -%}{{- message['content'] + eos_token -}}{%- endgeneration -%}
{%- elif message['role'] == 'user' -%}
{{- '\\n\\n### Instruction:\\n' + message['content'] -}}
{%- elif message['role'] != 'system' -%}
{{- raise_exception("the role must be 'system', 'user' or 'assistant', not '" + message['role'] + "'") -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '\\n\\n### Response:\\n' -}}{%- endif -%}
"""

# What stands between an instruction and its input in the user's message.
INPUT_JOINTS = {CHAT_TEMPLATE: "\n", ALPACA_TEMPLATE: "\n\n### Input:\n"}

_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_STAND_IN = re.compile("\ufdd0(\\d+)\ufdd1")  # noncharacters: Unicode keeps them for use inside a program


@dataclass(frozen=True)
class Segment:
    """A part of a conversation's text, and whether the assistant says it."""

    text: str
    spoken: bool


class ChatEncoder:
    """Messages to text and ids by a tokenizer's chat template.

    A special token that is spelt out in a message stays text: its characters get ids, never the special one. `forged`
    counts the conversations of `segments` in which that happened. Raises `ValueError` for a tokenizer without a
    template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        if not isinstance(tokenizer.chat_template, str):
            raise ValueError("the tokenizer has no chat template")
        self.tokenizer, self.template, self.forged = tokenizer, tokenizer.chat_template, 0
        self.is_marked = _MARKS.search(self.template) is not None
        self._backend = plain_backend(tokenizer)
        self._backend.encode_special_tokens = False
        self._plain = plain_backend(tokenizer)
        added = tokenizer.added_tokens_decoder
        self.special = {str(token.content): index for index, token in added.items() if token.special}
        longest_first = sorted(self.special, key=len, reverse=True)
        self._spellings = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        # What begins a stand-in has one itself: a message may hold any character.
        self._stood_in_for = [*self.special, "\ufdd0"]
        self._shielding = re.compile("|".join(map(re.escape, [*longest_first, "\ufdd0"])))

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids of a conversation, ready for the assistant's next answer.

        Raises `ValueError` for a message without role or text, and for one that the template refuses.
        """
        return self.encode([self._render(self._shielded(messages), prompt=True)])[0]

    def segments(self, messages: Sequence[Message]) -> list[Segment]:
        """Split a conversation's text into what is read and what is spoken; the texts are for `encode`.

        An answer of weight 0 is read: what is spoken is what a model learns to say.

        Raises `ValueError` for a message without role or text, for one that the template refuses, and where what the
        assistant says does not follow what stands there when it is asked to answer.
        """
        shielded = self._shielded(messages)
        self.forged += any(self._spellings.search(message["content"]) for message in messages)
        return self._segments(shielded)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each segment's text. Segments are encoded apart, as they are when a model answers."""
        rows = [encoding.ids for encoding in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]
        return [self._encode_forged(text) if "\ufdd0" in text else ids for text, ids in zip(texts, rows)]

    def _encode_forged(self, text: str) -> list[int]:
        """Return the ids of a text in which stand-ins become characters, and only real special tokens are special."""
        spellings, ids, at = self._stood_in_for, [], 0
        ends = [*((found.start(), found.end()) for found in self._spellings.finditer(text)), (len(text), len(text))]
        for start, end in ends:
            part = _STAND_IN.sub(lambda found: spellings[int(found[1])], text[at:start])
            ids += self._plain.encode(part, add_special_tokens=False).ids
            ids += [self.special[text[start:end]]] if end > start else []
            at = end
        return ids

    def _shielded(self, messages: Sequence[Message]) -> list[Message]:
        """Return the messages with a stand-in for every special token that is spelt out in them."""
        places = {spelling: place for place, spelling in enumerate(self._stood_in_for)}
        shielded = []
        for message in messages:
            content = message.get("content")
            if not isinstance(content, str) or not isinstance(message.get("role"), str):
                raise ValueError("a message needs a role and a content, both text")
            safe = self._shielding.sub(lambda found: f"\ufdd0{places[found[0]]}\ufdd1", content)
            shielded.append({**message, "content": safe})
        return shielded

    def _segments(self, messages: list[Message]) -> list[Segment]:
        text, spans = "", []
        if self.is_marked:
            (text,), (spans,) = self._call(messages, return_assistant_tokens_mask=True)
        else:
            text = self._render(messages)
        turns = [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]
        begins = []
        for turn in turns:
            prompt = self._render(messages[:turn], prompt=True)
            if not text.startswith(prompt):
                raise ValueError("the template writes another text for training than for an answer to be generated")
            begins.append(len(prompt))
        if not self.is_marked:
            spans = [(begin, len(self._render(messages[: turn + 1]))) for begin, turn in zip(begins, turns)]
        if [begin for begin, _ in spans] != begins:
            raise ValueError("the template's generation marks do not begin where an answer is to be generated")
        segments, at = [], 0
        for turn, (begin, end) in zip(turns, spans):
            if messages[turn].get("weight") == 0:
                continue
            segments += [Segment(text[at:begin], spoken=False), Segment(text[begin:end], spoken=True)]
            at = end
        return [*segments, Segment(text[at:], spoken=False)] if at < len(text) else segments

    def _render(self, messages: list[Message], prompt: bool = False) -> str:
        return self._call(messages, add_generation_prompt=prompt)[0][0]

    def _call(self, messages: list[Message], **options: Any) -> Any:
        names: Any = self.tokenizer.special_tokens_map
        try:
            return render_jinja_template([messages], chat_template=self.template, **options, **names)
        except jinja2.TemplateError as error:
            raise ValueError(f"the chat template refuses this conversation: {error}") from error


@dataclass(frozen=True)
class Spelling:
    """The way a chat template spells conversations, where it is as simple as this: a text before and after each turn.

    `opening` stands before a conversation without a system message, `asking` before the answer.
    """

    opening: str
    turns: dict[str, tuple[str, str]]
    asking: str

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast) -> "Spelling | None":
        """Find the texts by trying; None where the template does more than put them around what is said."""
        if not tokenizer.chat_template:
            return None

        def spell(*turns: tuple[str, str], prompt: bool = False) -> str:
            said = [{"role": role, "content": content} for role, content in turns]
            return str(tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=prompt))

        system, user, answer = (("system", "\ue000"), ("user", "\ue001"), ("assistant", "\ue002"))
        try:
            first, both = spell(system, user), spell(system, user, answer)
            opening = spell(user).removesuffix(first[len(spell(system)) :])
            texts = {"system": spell(system), "user": first[len(spell(system)) :], "assistant": both[len(first) :]}
            turns = {}
            for role, content in (system, user, answer):
                before, after = texts[role].split(content)
                turns[role] = (before, after)
            found = cls(opening, turns, spell(user, prompt=True)[len(spell(user)) :])
            trials = [(user,), (system, user), (user, answer, user), (system, user, answer, user, answer, user)]
            if all(found.spell(trial) == spell(*trial, prompt=True) for trial in trials):
                return found
        except (ValueError, TypeError, jinja2.TemplateError):  # it refuses one of these, or spells it with more
            pass
        return None

    def spell(self, turns: Sequence[tuple[str, str]]) -> str:
        """Return a conversation as it is spelt before the next answer."""
        opening = "" if turns[0][0] == "system" else self.opening
        return opening + "".join(content.join(self.turns[role]) for role, content in turns) + self.asking

    def in_go(self) -> str:
        """Return the same as a template of Ollama, which is one of Go's package text/template."""
        opening = f'{{{{ if ne (index .Messages 0).Role "system" }}}}{_go(self.opening)}{{{{ end }}}}'
        branches = "".join(
            f'{{{{ {"else " * bool(number)}if eq .Role "{role}" }}}}{_go(before)}{{{{ .Content }}}}{_go(after)}'
            for number, (role, (before, after)) in enumerate(self.turns.items())
        )
        turns = f"{{{{ range .Messages }}}}{branches}{{{{ end }}}}{{{{ end }}}}"
        return (opening if self.opening else "") + turns + _go(self.asking)


def _go(text: str) -> str:
    """Return a text as a template spells it: what would begin an action, or end the template, becomes a quoted text."""
    return re.sub(r'\{\{|"""|\{$', lambda found: f"{{{{ {json.dumps(found[0])} }}}}", text)
