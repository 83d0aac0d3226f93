"""What a hub keeps on its disk: objects by their hash, a repository as one JSON file that is replaced whole."""

import hashlib
import json
import os
import threading
from datetime import UTC, datetime


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
        """Return whether an object is there and undamaged."""
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
