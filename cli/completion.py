"""The verb `completion`: build a shell script from the settings that completes verbs, options and choices."""

import dataclasses
import typing
from typing import Any

from groundup.cli.help import kind_of
from groundup.cli.main import VERBS, find
from groundup.cli.settings import CompletionSettings
from groundup.common.settings import verb

# zsh runs bash's completion through its own compatibility layer.
_BASH = """\
_groundup() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" verb="${{COMP_WORDS[1]}}" offered=""
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{verbs}" -- "$word"))
    return
  fi
  case "$verb $before" in
{choices}
  esac
  if [ -n "$offered" ]; then
    COMPREPLY=($(compgen -W "$offered" -- "$word"))
    return
  fi
  case "$word" in
    -*)
      case "$verb" in
{options}
      esac
      COMPREPLY=($(compgen -W "$offered" -- "$word")) ;;
  esac
}}
complete -o default -F _groundup groundup
"""
_SCRIPTS = {"bash": _BASH, "zsh": "autoload -U +X bashcompinit && bashcompinit\n" + _BASH, "fish": ""}


@verb(CompletionSettings)
def completion(settings: CompletionSettings) -> str:
    """Print the completion script of a shell, and return it."""
    script = _fish() if settings.shell == "fish" else _bash(_SCRIPTS[settings.shell])
    print(script, end="")
    return script


def _bash(template: str) -> str:
    options = [f"        {name}) offered='{' '.join(_options(name))}' ;;" for name in VERBS]
    choices = [
        f"    '{name} {option}') offered='{' '.join(values)}' ;;"
        for name in VERBS
        for option, values in _options(name).items()
        if values
    ]
    return template.format(verbs=" ".join(VERBS), options="\n".join(options), choices="\n".join(choices))


def _fish() -> str:
    lines = []
    for name, entry in VERBS.items():
        description = (find(entry.settings).__doc__ or "").split(".")[0].split(":")[0].replace("'", "\\'")
        description = " ".join(description.split())
        lines.append(f"complete -c groundup -n __fish_use_subcommand -a {name} -d '{description}'")
        for option, values in _options(name).items():
            line = f"complete -c groundup -n '__fish_seen_subcommand_from {name}' -l {option[2:]}"
            lines.append(line + (f" -xa '{' '.join(values)}'" if values else ""))
    return "\n".join(lines) + "\n"


def _options(name: str) -> dict[str, list[str]]:
    """Return the options of a verb, each with its choices (perhaps none)."""
    settings_class: Any = find(VERBS[name].settings)
    hints = typing.get_type_hints(settings_class)
    options = {"--help": [], "--config": []}
    for field in dataclasses.fields(settings_class):
        kind = kind_of(hints[field.name]).removesuffix("...")
        options["--" + field.name.replace("_", "-")] = kind.split("|") if "|" in kind else []
    return options
