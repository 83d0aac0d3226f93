"""Whatever lies in a checkpoint's files, the gate says so in one clean line, or lets it through: 600 cases and more."""

import json
import random
import shutil
import struct

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from groundup.common.errors import InputError
from groundup.common.files import sha256_of
from groundup.publishing import proof
from groundup.publishing.gate import check_content
from groundup.publishing.gate_folder import sort_files

pytestmark = pytest.mark.slow
CASES = 160
FUZZING = settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck), database=None)

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**20), 2**20)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["..", "/etc/passwd", "a" * 5000, "\x00", "\ud800"[:0], "hf_" + "z" * 34, "🙂", "os.system"])
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)


@pytest.fixture
def spoilt(checkpoint):
    """Return the folder, whole again before each case."""
    original = checkpoint(name="original")

    def fresh():
        folder = original.with_name("spoilt")
        shutil.rmtree(folder, ignore_errors=True)
        return shutil.copytree(original, folder)

    return fresh


def judged(folder):
    """Return what the gate says of a folder; nothing but an `InputError` of one printable line may come out."""
    try:
        sort_files(folder)
        check_content(folder, {"license": "mit"})
        return True
    except InputError as error:
        said = " ".join(str(error).split())
        assert said and said.isprintable()
        return False


def scores_of_these(folder):
    path = folder / "metrics.json"
    scores = json.loads(path.read_text()) | {"weights_sha256": sha256_of(folder / "model.safetensors")}
    path.write_text(json.dumps(scores))


def mutated(values, data):
    """Return a mapping with a value, a key or a whole level changed."""
    place, depth = values, 0
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            break
        key = data.draw(st.sampled_from(keys))
        if isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans()) and depth < 6:
            place, depth = place[key], depth + 1
            continue
        if data.draw(st.integers(0, 4)) == 0:
            del place[key]
        else:
            place[key] = data.draw(VALUES)
        break
    return values


def torn(content: bytes, data) -> bytes:
    """Return bytes with some changed, cut away or put in."""
    content = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(content) - 1)))
        what = data.draw(st.sampled_from(["change", "cut", "insert", "end"]))
        if what == "change" and content:
            content[at] = data.draw(st.integers(0, 255))
        elif what == "cut":
            del content[at : at + data.draw(st.integers(1, 200))]
        elif what == "insert":
            content[at:at] = data.draw(st.binary(max_size=20))
        else:
            del content[at:]
    return bytes(content)


@FUZZING
@given(data=st.data())
def test_any_config(spoilt, data):
    folder = spoilt()
    path = folder / data.draw(st.sampled_from(["config.json", "config.json", "generation_config.json"]))
    if data.draw(st.integers(0, 3)):
        path.write_text(json.dumps(mutated(json.loads(path.read_text()), data)))
    else:
        path.write_bytes(torn(path.read_bytes(), data))
    if judged(folder):
        try:
            proof._load(folder, proof.auto_class_of(folder))
        except InputError as error:
            assert str(error)


@FUZZING
@given(data=st.data())
def test_any_header_of_safetensors(spoilt, data):
    folder = spoilt()
    path = folder / "model.safetensors"
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header, tensors = content[8 : 8 + length], content[8 + length :]
    mutate = data.draw(st.booleans())
    header = json.dumps(mutated(json.loads(header), data)).encode() if mutate else torn(header, data)
    said = data.draw(st.sampled_from([len(header)] * 6 + [0, 2**31, 2**63, 2**64 - 1, len(header) + 1]))
    path.write_bytes(struct.pack("<Q", said) + header + tensors)
    scores_of_these(folder)
    judged(folder)


@FUZZING
@given(data=st.data())
def test_any_tokenizer(spoilt, data):
    folder = spoilt()
    path = folder / data.draw(st.sampled_from(["tokenizer.json", "tokenizer.json", "tokenizer_config.json"]))
    if data.draw(st.integers(0, 3)):
        path.write_text(json.dumps(mutated(json.loads(path.read_text()), data)))
    else:
        path.write_bytes(torn(path.read_bytes(), data))
    judged(folder)


@FUZZING
@given(data=st.data())
def test_any_recipe_and_any_scores(spoilt, data):
    folder = spoilt()
    if data.draw(st.booleans()):
        path = folder / "recipe.yaml"
        new = yaml.safe_dump(mutated(yaml.safe_load(path.read_text()), data), allow_unicode=True).encode()
    else:
        path = folder / "metrics.json"
        new = json.dumps(mutated(json.loads(path.read_text()), data)).encode()
    path.write_bytes(new if data.draw(st.integers(0, 3)) else torn(path.read_bytes(), data))
    judged(folder)


def test_any_name(checkpoint):
    folder, letters = checkpoint(), random.Random(0)
    for _ in range(200):
        name = "".join(chr(letters.choice([letters.randrange(1, 300), letters.randrange(1, 0x3000)])) for _ in range(9))
        path = folder / name.replace("/", "x")
        path.write_text("")
        judged(folder)
        path.unlink()
