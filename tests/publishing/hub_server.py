"""A hub on the loopback interface, good enough for the unmodified clients of the Hub; a process of its own.

    python hub_server.py FOLDER PORT

FOLDER/users.json: {token: {"name", "orgs", "role": "write" | "read"}}. Everything is kept under FOLDER (hub_store.py),
so that a server that died can be started again; requests.jsonl has a row for each request. Tests inject faults by
POST /_faults: [{"path": regex, "method", "times", "do": ...}], see `Handler.handle_any`.
"""

import json
import os
import re
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from hub_places import ROUTES, Places
from hub_store import Hub, Refused, Repo, blob_oid


class Handler(Places, BaseHTTPRequestHandler):
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
        """Return the next fault that is meant for this request; it is used up."""
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


def main(root, port):
    Handler.hub = Hub(Path(root))
    server = ThreadingHTTPServer(("127.0.0.1", int(port)), Handler)
    server.daemon_threads = True
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
