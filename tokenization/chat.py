"""Conversations as text: the chat template and its mark around what the assistant says.

`apply_chat_template(..., return_assistant_tokens_mask=True)` needs `{% generation %}`; without it the mask is empty and
training on answers only would train on nothing.
"""

from groundup.tokenization.folder import ASSISTANT, END, SYSTEM, USER

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
