"""The parts of the page that need no browser."""

import json
import shutil
import subprocess
import sys
import urllib.request

import pytest
from gradio_client import Client
from transformers import GenerationConfig

from groundup.cli import playground as playground_module
from groundup.cli.main import main, parse
from groundup.cli.page import about_html, build_page, lens_value
from groundup.cli.playground import load_player, serve
from groundup.common.errors import InputError
from groundup.inference.generation import Sampling, complete


@pytest.fixture(scope="module")
def player(folders):
    return load_player(str(folders / "pretrained"))


def test_one_or_two_models_are_taken(capsys):
    assert parse("playground", ["--model", "a", "b", "--port", "8000"]).model == ["a", "b"]
    assert parse("playground", ["--model", "a", "--model", "b"]).model == ["a", "b"]
    for models in ([], ["--model", "a", "b", "c"]):
        assert main(["playground", *models]) == 2
        assert "one or two models" in capsys.readouterr().err
    assert main(["playground", "--model", "./nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_without_gradio_one_line_says_what_to_install(monkeypatch, capsys):
    for name in ("gradio", "starlette"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("groundup.cli.page", "groundup.cli.playground"):
        monkeypatch.delitem(sys.modules, name)
    assert main(["playground", "--model", "a"]) == 2
    assert "pip install 'groundup[playground]'" in capsys.readouterr().err


def test_what_the_lens_is_sent_is_one_layer_and_can_be_written_as_json(player):
    seen = player.lens.look("The cat sat")
    value = json.loads(json.dumps(lens_value(seen, 2)))
    assert (value["layers"], value["layer"], value["heads"]) == (3, 2, 2)
    assert [token["text"] for token in value["tokens"]] == [token.text for token in seen.tokens]
    assert "left out" in lens_value(player.lens.look("The cat sat on the mat. " * 20), 1)["summary"]


def test_what_is_told_of_a_model_is_escaped(player):
    named = type(player)("<b>x</b>", player.source, player.model, player.tokenizer, player.lens, False)
    told = about_html(named)
    assert "<b>x" not in told and "48 tokens" in told


def test_the_page_answers_on_this_machine_alone_and_forbids_the_network(player):
    page = build_page([player])
    url = serve(page)
    try:
        assert url.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(url, timeout=60) as answer:
            assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
        foreign = urllib.request.Request(url, headers={"Host": "rebound.test"})
        with pytest.raises(urllib.error.HTTPError, match="400"):
            urllib.request.urlopen(foreign, timeout=60)
    finally:
        page.close(verbose=False)


FIRST_TEXT = """
import sys
from gradio_client import Client
from groundup.cli.page import build_page
from groundup.cli.playground import load_player, serve
page = build_page([load_player(sys.argv[1])])
visitor = Client(serve(page), verbose=False)
before = set(sys.modules)
visitor.predict("The cat", 0.8, 50, 0.95, 5, 0, api_name="/complete")
print("matplotlib.pyplot" in set(sys.modules) - before)
page.close(verbose=False)
"""


def test_the_first_text_of_all_does_not_wait_for_matplotlib(folders):
    command = [sys.executable, "-c", FIRST_TEXT, str(folders / "pretrained")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_the_page_heeds_the_models_own_settings_that_it_has_no_control_for(player, monkeypatch):
    def shown(**own):
        monkeypatch.setattr(player.model, "generation_config", GenerationConfig(**own))
        return visitor.predict("The cat", 0, 50, 0.95, 12, 0, api_name="/complete")

    page = build_page([player])
    visitor = Client(serve(page), verbose=False)
    try:
        plain, penalised = shown(), shown(repetition_penalty=5.0)
        sampling = Sampling(max_new_tokens=12, temperature=0, repetition_penalty=5.0)
        assert complete(player.model, player.tokenizer, "The cat", sampling) in str(penalised)
        assert str(plain) != str(penalised)
    finally:
        page.close(verbose=False)


def test_a_port_that_is_taken_is_the_users_error(player, capsys):
    page = build_page([player])
    url = serve(page)
    try:
        port = url.rsplit(":", 1)[1].strip("/")
        assert main(["playground", "--model", player.source, "--port", port]) == 2
        assert "choose another --port" in capsys.readouterr().err
    finally:
        page.close(verbose=False)


def test_two_models_of_one_name_stand_on_the_page_as_two(folders, tmp_path, monkeypatch):
    """By the last two parts of their paths they were one, and the second was never asked."""
    shown = []
    for place in ("one", "two"):
        shutil.copytree(folders / "pretrained", tmp_path / place / "run" / "final")

    def build(players):
        shown.extend(player.name for player in players)
        raise InputError("seen enough")

    monkeypatch.setattr(playground_module, "build_page", build)
    with pytest.raises(InputError, match="seen enough"):
        playground_module.playground(model=[str(tmp_path / place / "run" / "final") for place in ("one", "two")])
    assert len(set(shown)) == 2
