"""`--space`: the playground for a published model as a Space, which runs where this package is not installed."""

import ast
import contextlib
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from gradio_client import Client
from huggingface_hub import SpaceCard

from groundup.common.errors import InputError
from groundup.hub_upload import publish as publish_here
from groundup.publishing import space


def test_the_files_of_a_space_need_no_other_of_this_package(tmp_path):
    space.build_space(tmp_path, "alice/x", "mit")
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert {"app.py", "requirements.txt", "README.md", "groundup/cli/lens.js", "groundup/cli/page.css"} <= files
    assert all(map(space.is_of_a_space, files)) and not space.is_of_a_space("theirs.py")
    assert not [name for name in files if name.startswith(("groundup/training", "groundup/hub_upload"))]
    for name in files:
        if name.endswith(".py"):
            for node in ast.walk(ast.parse((tmp_path / name).read_text())):
                if isinstance(node, ast.ImportFrom) and not node.level and str(node.module).startswith("groundup."):
                    place = node.module.replace(".", "/")
                    assert f"{place}.py" in files or f"{place}/__init__.py" in files, (name, node.module)


def test_a_space_names_its_model_and_its_packages_with_their_versions(tmp_path):
    space.build_space(tmp_path, "alice/x", "mit")
    needs = dict(line.split("==") for line in (tmp_path / "requirements.txt").read_text().splitlines())
    assert {"torch", "transformers", "tokenizers", "safetensors", "huggingface-hub", "peft"} <= set(needs)
    assert "gradio" not in needs and "groundup" not in needs and not any("+" in version for version in needs.values())
    data = SpaceCard.load(tmp_path / "README.md").data
    assert (data.sdk, data.app_file, data.models, data.license) == ("gradio", "app.py", ["alice/x"], "mit")
    assert data.sdk_version == space.needed_packages()["gradio"]
    space.write_app(tmp_path, "alice/x", "0123abc")
    assert "serve_as_space('alice/x', '0123abc')" in (tmp_path / "app.py").read_text()


def test_without_gradio_there_is_no_space(tmp_path, monkeypatch):
    monkeypatch.setattr(space.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match="--space needs gradio"):
        space.build_space(tmp_path, "alice/x", "mit")


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [("classifier", {}, "a causal language model"), ("language", {"pull_request": True}, "that is on the Hub")],
)
def test_what_no_space_can_show_is_said_before_anything_is_done(kind, options, words, checkpoint, hub, repo_id):
    with pytest.raises(InputError, match=f"--space shows .*{words}"):
        publish_here(checkpoint=str(checkpoint(kind)), repo_id=repo_id, license="mit", space=True, **options)
    assert hub.state(repo_id) is None


@pytest.mark.slow
def test_a_published_space_shows_the_model_as_it_was_published(publish, elsewhere, checkpoint, hub, repo_id, tmp_path):
    done = publish(checkpoint(), repo_id, "--space")
    assert f"published: {hub.url}/spaces/{repo_id}-space" in done.stderr
    home = tmp_path / "machine"
    fetch = "import sys; from huggingface_hub import snapshot_download as fetch\n"
    fetch += "fetch(sys.argv[1], repo_type='space', local_dir='.'); import groundup; print(groundup.__file__)"
    home.mkdir()
    done = elsewhere("-c", fetch, f"{repo_id}-space", token=None, home=home)
    assert done.stdout.strip() == str(home / "groundup" / "__init__.py")  # the Space's own copy is what runs
    assert hub.state(repo_id)["heads"]["main"] in (home / "app.py").read_text()
    with running(home, elsewhere.environment(home, None)) as url:
        with urllib.request.urlopen(url) as answer:
            assert "frame-ancestors https://huggingface.co" in answer.headers["Content-Security-Policy"]
            assert f"**{repo_id}**" in answer.read().decode()
        written = Client(url, verbose=False, httpx_kwargs={"timeout": 300}).predict(
            "The cat", 0, 50, 1, 5, 0, api_name="/complete"
        )
    assert "The cat</span>" in written and "seed 0" in written


@contextlib.contextmanager
def running(home, environment):
    """Yield the Space's program, until it answers, and then its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment |= {"GRADIO_SERVER_PORT": str(port)}
    with (home / "log").open("w") as log:
        app = subprocess.Popen([sys.executable, "app.py"], cwd=home, env=environment, stdout=log, stderr=log)
    try:
        for _ in range(1200):
            assert app.poll() is None, (home / "log").read_text()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        app.kill()
        app.wait()
