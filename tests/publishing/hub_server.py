"""A hub on the loopback interface, good enough for the unmodified clients of the Hub; a process of its own.

    python hub_server.py FOLDER PORT

FOLDER/users.json: {token: {"name", "orgs", "role": "write" | "read"}}. Everything is kept under FOLDER, so that a
server that died can be started again: objects by their hash, a repository as one JSON file, requests.jsonl. Tests
inject faults by POST /_faults: [{"path": regex, "method", "times", "do": ...}], see `Handler.handle_any`.
"""

import base64
import hashlib
import json
import os
import re
import sys
import threading
import time
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

PART = 2_000_000  # bytes; a larger object is sent in parts
LFS_SUFFIXES = (".safetensors", ".bin", ".gguf", ".png", ".parquet", ".pt", ".zip")
LICENSES = ("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc-by-sa-4.0", "cc0-1.0", "gpl-3.0", "openrail", "other")
PIPELINES = ("text-generation", "fill-mask", "text-classification", "token-classification", "question-answering",
             "feature-extraction")  # fmt: skip
KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}


def blob_oid(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def pointer(sha256, size):
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def now():
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Refused(Exception):  # noqa: N818
    def __init__(self, status, error, code=None, **more):
        self.status, self.headers = status, {"X-Error-Message": error} | ({"X-Error-Code": code} if code else {})
        self.content = {"error": error} | more


class Repo:
    """A repository: commits, branches, tags and pull requests, in one file that is replaced as a whole."""

    def __init__(self, path, state=None):
        self.path = path
        self.state = state if state is not None else json.loads(path.read_text())

    def save(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".new")
        temporary.write_text(json.dumps(self.state))
        os.replace(temporary, self.path)

    def resolve(self, revision):
        state = self.state
        pulls = {f"refs/pr/{number}": pull["head"] for number, pull in state["pulls"].items()}
        for names in (state["heads"], state["tags"], pulls):
            if revision in names:
                return names[revision]
        found = [sha for sha in state["commits"] if len(revision) >= 7 and sha.startswith(revision)]
        if not found:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found[0]

    def files(self, revision):
        return self.state["commits"][self.resolve(revision)]["files"]

    def commit(self, parent, files, title, user):
        record = {"parent": parent, "files": files, "title": title, "user": user, "date": now()}
        sha = hashlib.sha1(json.dumps(record).encode()).hexdigest()
        self.state["commits"][sha] = record
        return sha


class Hub:
    """Repositories and objects on the disk."""

    def __init__(self, root):
        self.root, self.lock, self.faults = root, threading.RLock(), []
        self.users = json.loads((root / "users.json").read_text())
        (root / "objects").mkdir(exist_ok=True)

    def object(self, oid):
        return self.root / "objects" / oid

    def holds(self, oid):
        """Whether an object is there and undamaged."""
        path = self.object(oid)
        return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == oid

    def store(self, oid, content):
        temporary = self.object(f"{oid}.{threading.get_ident()}")
        temporary.write_bytes(content)
        os.replace(temporary, self.object(oid))

    def path(self, kind, name):
        return self.root / "repos" / kind / f"{name}.json"

    def create(self, kind, name, private, user):
        repo = Repo(self.path(kind, name), {"id": name, "private": private, "owner": user, "commits": {}, "heads": {},
                                            "tags": {}, "pulls": {}})  # fmt: skip
        content = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
        self.store(blob_oid(content), content)
        files = {".gitattributes": {"oid": blob_oid(content), "size": len(content)}}
        repo.state["heads"]["main"] = repo.commit(None, files, "initial commit", user)
        repo.save()
        return repo


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    # The frame of every request

    def log_message(self, *_):
        pass

    def handle_any(self):
        split = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(split.query).items()}
        self.form, self.route = {}, split.path
        length = int(self.headers.get("Content-Length") or 0)
        self.note(split.path)
        fault = self.injected(split.path)
        if fault.get("do") == "die in the middle":
            self.rfile.read(length // 2)
            os._exit(1)
        self.body = self.rfile.read(length)
        try:
            if fault.get("do") == "status":
                said = fault.get("said", "a fault that was injected").replace("TOKEN", self.token() or "")
                raise Refused(fault["status"], said)
            if fault.get("do") == "silence":
                time.sleep(fault["seconds"])
            if fault.get("do") == "push":
                self.push_from_outside(fault["repo"])
            if fault.get("do") == "corrupt on the way":
                self.body = self.body[:-1] + bytes([self.body[-1] ^ 1])
            answer = self.dispatch(split.path)
            if fault.get("do") == "corrupt the store":
                path = self.hub.object(split.path.rsplit("/", 1)[1])
                path.write_bytes(path.read_bytes()[:-1] + b"?")
            if fault.get("do") == "die before the answer":
                os._exit(1)
            self.answer(200, *answer)
        except Refused as error:
            self.answer(error.status, error.content, error.headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any  # noqa: N815

    def answer(self, status, content=None, headers=None):
        body = content if isinstance(content, bytes) else json.dumps({} if content is None else content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if not isinstance(content, bytes):
            self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def note(self, path):
        row = {
            "method": self.command,
            "path": path,
            "host": self.headers.get("Host"),
            "token": self.token() is not None,
        }
        with self.hub.lock, (self.hub.root / "requests.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    def injected(self, path):
        """The next fault that is meant for this request; it is used up."""
        with self.hub.lock:
            for fault in self.hub.faults:
                fits = re.search(fault["path"], path) and fault.get("method", self.command) == self.command
                if fits and fault.setdefault("times", 1) > 0:
                    fault["times"] -= 1
                    return fault
        return {}

    def push_from_outside(self, name):
        with self.hub.lock:
            repo = Repo(self.hub.path("models", name))
            content = b"somebody else was here"
            self.hub.store(blob_oid(content), content)
            head = repo.state["heads"]["main"]
            files = repo.files(head) | {"theirs.txt": {"oid": blob_oid(content), "size": len(content)}}
            repo.state["heads"]["main"] = repo.commit(head, files, "theirs", "bob")
            repo.save()

    # Who asks, and what for

    def token(self):
        header = self.headers.get("Authorization") or ""
        return header.removeprefix("Bearer ") if header.startswith("Bearer ") else None

    def user(self, needed=False):
        token = self.token()
        if token is not None and token not in self.hub.users:
            raise Refused(401, "Invalid credentials in Authorization header")
        if token is None and needed:
            raise Refused(401, "Invalid username or password.")
        return self.hub.users.get(token)

    def may_write(self, name, user):
        return user["role"] == "write" and name.split("/")[0] in (user["name"], *user.get("orgs", ()))

    def repo(self, kind, name, write=False):
        user = self.user(needed=write)
        path = self.hub.path(kind, name)
        visible = path.is_file()
        if visible and (repo := Repo(path)).state["private"]:
            visible = user is not None and name.split("/")[0] in (user["name"], *user.get("orgs", ()))
        if not visible:
            raise Refused(401 if user is None else 404, "Repository not found", "RepoNotFound")
        if write and not self.may_write(name, user):
            raise Refused(403, "You don't have the rights to write to this repository")
        return repo

    def json(self):
        return json.loads(self.body or b"{}")

    def dispatch(self, path):
        for method, pattern, function in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method.split("|"):
                with self.hub.lock:
                    return function(self, *[group and unquote(group) for group in match.groups()])
        raise Refused(404, f"no such place: {self.command} {path}")

    # The places

    def set_faults(self):
        self.hub.faults = self.json()
        return ({},)

    def whoami(self):
        user = self.user(needed=True)
        organisations = [{"name": name} for name in user.get("orgs", ())]
        token = {"accessToken": {"role": user["role"], "displayName": "test"}}
        return ({"type": "user", "name": user["name"], "orgs": organisations, "auth": token},)

    def create_repo(self):
        user, asked = self.user(needed=True), self.json()
        kind = asked.get("type", "model") + "s"
        name = f"{asked.get('organization') or user['name']}/{asked['name']}"
        url = f"http://{self.headers['Host']}/{'' if kind == 'models' else kind + '/'}{name}"
        if not self.may_write(name, user):
            raise Refused(403, "You don't have the rights to create a repository here")
        if self.hub.path(kind, name).is_file():
            raise Refused(409, "You already created this repository", url=url)
        self.hub.create(kind, name, asked.get("visibility") == "private", user["name"])
        return ({"url": url},)

    def delete_repo(self):
        asked, user = self.json(), self.user(needed=True)
        name = f"{asked.get('organization') or user['name']}/{asked['name']}"
        self.repo(asked.get("type", "model") + "s", name, write=True).path.unlink()
        return ({},)

    def settings(self, kind, name):
        repo = self.repo(kind, name, write=True)
        repo.state["private"] = self.json().get("visibility") == "private"
        repo.save()
        return ({},)

    def info(self, kind, name, revision=None):
        repo = self.repo(kind, name)
        sha = repo.resolve(revision or "main")
        siblings = [self.sibling(path, entry) for path, entry in repo.files(sha).items()]
        content = {"id": name, "modelId": name, "sha": sha, "private": repo.state["private"], "siblings": siblings}
        content |= {"author": name.split("/")[0], "lastModified": now(), "tags": [], "cardData": self.card(repo, sha)}
        content["pipeline_tag"] = content["cardData"].get("pipeline_tag")
        return (content,)

    def card(self, repo, sha):
        entry = repo.files(sha).get("README.md")
        match = re.match(r"---\n(.*?)\n---", self.hub.object(entry["oid"]).read_text(), re.S) if entry else None
        return yaml.safe_load(match[1]) if match else {}

    def sibling(self, path, entry):
        lfs = {"sha256": entry["lfs"], "size": entry["size"], "pointerSize": 130} if entry.get("lfs") else None
        return {"rfilename": path, "size": entry["size"], "blobId": entry["oid"]} | ({"lfs": lfs} if lfs else {})

    def validate_yaml(self):
        errors = card_errors(self.json()["content"])
        if errors:
            raise Refused(400, "invalid", errors=[{"message": error} for error in errors])
        return ({"errors": [], "warnings": []},)

    def preupload(self, kind, name, revision):
        repo = self.repo(kind, name, write="create_pr" not in self.query)
        files, answers = repo.files(revision), []
        for asked in self.json()["files"]:
            entry = files.get(asked["path"])
            lfs = asked["path"].endswith(LFS_SUFFIXES) or asked["size"] > 10_000_000
            oid = entry and (entry.get("lfs") or entry["oid"])
            mode = "lfs" if lfs else "regular"
            answers.append({"path": asked["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return ({"files": answers},)

    def lfs_batch(self, prefix, name):
        self.repo((prefix or "models/")[:-1], name)
        self.user(needed=True)
        host, answers = f"http://{self.headers['Host']}", []
        for asked in self.json()["objects"]:
            oid, size = asked["oid"], asked["size"]
            answer = {"oid": oid, "size": size}
            if not self.hub.holds(oid):
                upload = {"href": f"{host}/_store/{oid}"}
                if size > PART:
                    parts = range(1, -(-size // PART) + 1)
                    upload = {"href": f"{host}/_parts/{oid}", "header": {"chunk_size": str(PART)}}
                    upload["header"] |= {f"{part:05}": f"{host}/_parts/{oid}.{part}" for part in parts}
                verify = {"href": f"{host}/{prefix or ''}{name}.git/info/lfs/verify"}
                answer["actions"] = {"upload": upload, "verify": verify}
            answers.append(answer)
        return ({"transfer": "multipart" if any(o["size"] > PART for o in answers) else "basic", "objects": answers},)

    def lfs_put(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refused(422, "the content does not have the hash it claims")
        self.hub.store(oid, self.body)
        return (b"",)

    def lfs_part(self, oid, part):
        self.hub.store(f"{oid}.{part}", self.body)
        return b"", {"ETag": hashlib.md5(self.body).hexdigest()}

    def lfs_join(self, oid):
        parts = [self.hub.object(f"{oid}.{part['partNumber']}") for part in self.json()["parts"]]
        self.body = b"".join(path.read_bytes() for path in parts)
        for path in parts:
            path.unlink()
        return self.lfs_put(oid)

    def lfs_verify(self, prefix, name):
        asked = self.json()
        if not self.hub.object(asked["oid"]).is_file():
            raise Refused(404, "no such object")
        return ({},)

    def commit(self, kind, name, revision):
        pull = self.query.get("create_pr") in ("1", "true", "True")
        repo, user = self.repo(kind, name, write=not pull), self.user(needed=True)
        rows = [json.loads(line) for line in self.body.splitlines()]
        header = next(row["value"] for row in rows if row["key"] == "header")
        head = repo.resolve(revision)
        if not pull and header.get("parentCommit") not in (None, head):
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repo.files(head))
        for row in rows:
            self.apply(files, row["key"], row["value"])
        sha = repo.commit(head, files, header["summary"], user["name"])
        content = {"commitUrl": f"http://{self.headers['Host']}/{name}/commit/{sha}", "commitOid": sha}
        if kind != "models":
            content["commitUrl"] = f"http://{self.headers['Host']}/{kind}/{name}/commit/{sha}"
        if pull:
            number = str(len(repo.state["pulls"]) + 1)
            repo.state["pulls"][number] = {"head": sha, "title": header["summary"], "author": user["name"]}
            content["pullRequestUrl"] = f"http://{self.headers['Host']}/{name}/discussions/{number}"
        else:
            repo.state["heads"][revision] = sha
        repo.save()
        return (content,)

    def apply(self, files, key, value):
        """One operation of a commit."""
        if key == "file":
            content = base64.b64decode(value["content"])
            self.hub.store(blob_oid(content), content)
            files[value["path"]] = {"oid": blob_oid(content), "size": len(content)}
        elif key == "lfsFile":
            if not self.hub.object(value["oid"]).is_file():
                raise Refused(400, f"no object {value['oid']} was uploaded")
            size = self.hub.object(value["oid"]).stat().st_size
            oid = blob_oid(pointer(value["oid"], size))
            files[value["path"]] = {"oid": oid, "size": size, "lfs": value["oid"]}
        elif key == "deletedFile" and files.pop(value["path"], None) is None:
            raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
        elif key == "deletedFolder":
            for path in [path for path in files if path.startswith(value["path"].rstrip("/") + "/")]:
                del files[path]

    def tree(self, kind, name, revision, folder=None):
        files, prefix = self.repo(kind, name).files(revision), f"{folder}/" if folder else ""
        inside = {path: entry for path, entry in files.items() if path.startswith(prefix)}
        if folder and not inside:
            raise Refused(404, f"{folder} does not exist", "EntryNotFound")
        recursive = self.query.get("recursive") == "true"
        rows, folders = [], set()
        for path, entry in inside.items():
            parts = path.removeprefix(prefix).split("/")
            for depth in range(1, len(parts) if recursive else min(2, len(parts))):
                folders.add(prefix + "/".join(parts[:depth]))
            if recursive or len(parts) == 1:
                rows.append(self.row(path, entry))
        return ([{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(folders)] + rows,)

    def row(self, path, entry):
        lfs = {"oid": entry["lfs"], "size": entry["size"], "pointerSize": 130} if entry.get("lfs") else None
        return {"type": "file", "path": path, "size": entry["size"], "oid": entry["oid"]} | (
            {"lfs": lfs} if lfs else {}
        )

    def paths_info(self, kind, name, revision):
        files = self.repo(kind, name).files(revision)
        asked = parse_qs(self.body.decode()).get("paths", []) if b"paths=" in self.body else self.json()["paths"]
        return ([self.row(path, files[path]) for path in asked if path in files],)

    def refs(self, kind, name):
        state = self.repo(kind, name).state

        def rows(names, place):
            return [{"name": name, "ref": f"{place}/{name}", "targetCommit": sha} for name, sha in names.items()]

        pulls = {number: pull["head"] for number, pull in state["pulls"].items()}
        return (
            {"branches": rows(state["heads"], "refs/heads"), "tags": rows(state["tags"], "refs/tags"), "converts": [],
             "pullRequests": rows(pulls, "refs/pr")},
        )  # fmt: skip

    def commits(self, kind, name, revision):
        repo = self.repo(kind, name)
        sha, rows = repo.resolve(revision), []
        while sha:
            record = repo.state["commits"][sha]
            authors = [{"user": record["user"]}]
            rows.append(
                {"id": sha, "title": record["title"], "message": "", "authors": authors, "date": record["date"]}
            )
            sha = record["parent"]
        return (rows,)

    def make_ref(self, kind, name, what, ref):
        repo = self.repo(kind, name, write=True)
        names = repo.state["heads" if what == "branch" else "tags"]
        given = self.json()
        new, start = (ref, given.get("startingPoint", "main")) if what == "branch" else (given["tag"], ref)
        if new in names:
            raise Refused(409, f"Reference already exists: {new}")
        names[new] = repo.resolve(start)
        repo.save()
        return ({},)

    def drop_ref(self, kind, name, what, ref):
        repo = self.repo(kind, name, write=True)
        repo.state["heads" if what == "branch" else "tags"].pop(ref, None)
        repo.save()
        return ({},)

    def file(self, prefix, name, revision, path):
        repo = self.repo((prefix or "models/")[:-1], name)
        sha = repo.resolve(revision)
        entry = repo.files(sha).get(path)
        if entry is None:
            error = Refused(404, f"{path} does not exist", "EntryNotFound")
            error.headers["X-Repo-Commit"] = sha
            raise error
        content = self.hub.object(entry.get("lfs") or entry["oid"]).read_bytes()
        headers = {"X-Repo-Commit": sha, "ETag": f'"{entry.get("lfs") or entry["oid"]}"'}
        if entry.get("lfs"):
            headers |= {"X-Linked-ETag": f'"{entry["lfs"]}"', "X-Linked-Size": str(entry["size"])}
        return content, headers


NAME, REV, KIND = r"([\w.-]+/[\w.-]+)", r"([^/]+)", "(models|datasets|spaces)"
ROUTES = [
    ("POST", r"/_faults", Handler.set_faults),
    ("GET", r"/api/whoami-v2", Handler.whoami),
    ("POST", r"/api/repos/create", Handler.create_repo),
    ("DELETE", r"/api/repos/delete", Handler.delete_repo),
    ("POST", r"/api/validate-yaml", Handler.validate_yaml),
    ("PUT", rf"/api/{KIND}/{NAME}/settings", Handler.settings),
    ("GET", rf"/api/{KIND}/{NAME}", Handler.info),
    ("GET", rf"/api/{KIND}/{NAME}/revision/{REV}", Handler.info),
    ("POST", rf"/api/{KIND}/{NAME}/preupload/{REV}", Handler.preupload),
    ("POST", rf"/api/{KIND}/{NAME}/commit/{REV}", Handler.commit),
    ("GET", rf"/api/{KIND}/{NAME}/tree/{REV}(?:/(.+))?", Handler.tree),
    ("POST", rf"/api/{KIND}/{NAME}/paths-info/{REV}", Handler.paths_info),
    ("GET", rf"/api/{KIND}/{NAME}/refs", Handler.refs),
    ("GET", rf"/api/{KIND}/{NAME}/commits/{REV}", Handler.commits),
    ("POST", rf"/api/{KIND}/{NAME}/(branch|tag)/{REV}", Handler.make_ref),
    ("DELETE", rf"/api/{KIND}/{NAME}/(branch|tag)/{REV}", Handler.drop_ref),
    ("POST", rf"/(datasets/|spaces/)?{NAME}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("POST", rf"/(datasets/|spaces/)?{NAME}\.git/info/lfs/verify", Handler.lfs_verify),
    ("PUT", r"/_store/(\w+)", Handler.lfs_put),
    ("PUT", r"/_parts/(\w+)\.(\d+)", Handler.lfs_part),
    ("POST", r"/_parts/(\w+)", Handler.lfs_join),
    ("GET|HEAD", rf"/(datasets/|spaces/)?{NAME}/resolve/{REV}/(.+)", Handler.file),
]


def card_errors(content):
    """What the Hub's own check of a card finds, as far as its documentation says."""
    match = re.match(r"---\n(.*?)\n---\n", content, re.S)
    try:
        data = yaml.safe_load(match[1]) if match else {}
    except yaml.YAMLError as error:
        return [f"YAML: {error}"]
    errors = []
    if data.get("license") not in (None, *LICENSES):
        errors.append(f'"license" must be one of {LICENSES}')
    languages = data.get("language") or []
    for language in [languages] if isinstance(languages, str) else languages:
        if not re.fullmatch(r"[a-z]{2,3}|code|multilingual", language):
            errors.append('"language" must be an ISO 639-1, 639-2 or 639-3 code')
    if data.get("pipeline_tag") not in (None, *PIPELINES):
        errors.append('"pipeline_tag" must be a known task')
    for name in ("base_model", "datasets"):
        values = data.get(name) or []
        for value in [values] if isinstance(values, str) else values:
            if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", value):
                errors.append(f'"{name}" must be the id of a repository')
    for model in data.get("model-index") or []:
        for result in model["results"]:
            if not {"task", "dataset", "metrics"} <= result.keys() or "type" not in result["task"]:
                errors.append('"model-index" lacks a task, a dataset or metrics')
            elif not {"name", "type"} <= result["dataset"].keys():
                errors.append('"model-index[0].results[0].dataset" lacks a name or a type')
    return errors


def main(root, port):
    Handler.hub = Hub(Path(root))
    server = ThreadingHTTPServer(("127.0.0.1", int(port)), Handler)
    server.daemon_threads = True
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
