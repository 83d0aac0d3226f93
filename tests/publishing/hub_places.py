"""The places of the Hub's interface that its clients ask for, one function each; ROUTES sends requests there."""

import base64
import hashlib
import json
import re
from urllib.parse import parse_qs

import yaml
from hub_cards import card_errors
from hub_store import Refused, blob_oid, now, pointer

PART = 2_000_000  # bytes; a larger object is sent in parts
LFS_SUFFIXES = (".safetensors", ".bin", ".gguf", ".png", ".parquet", ".pt", ".zip")


class Places:
    """What a request is answered with; `server.Handler` adds the frame: `hub`, `body`, `query`, `repo()`, `user()`."""

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
        """Apply one operation of a commit."""
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
    ("POST", r"/_faults", Places.set_faults),
    ("GET", r"/api/whoami-v2", Places.whoami),
    ("POST", r"/api/repos/create", Places.create_repo),
    ("DELETE", r"/api/repos/delete", Places.delete_repo),
    ("POST", r"/api/validate-yaml", Places.validate_yaml),
    ("PUT", rf"/api/{KIND}/{NAME}/settings", Places.settings),
    ("GET", rf"/api/{KIND}/{NAME}", Places.info),
    ("GET", rf"/api/{KIND}/{NAME}/revision/{REV}", Places.info),
    ("POST", rf"/api/{KIND}/{NAME}/preupload/{REV}", Places.preupload),
    ("POST", rf"/api/{KIND}/{NAME}/commit/{REV}", Places.commit),
    ("GET", rf"/api/{KIND}/{NAME}/tree/{REV}(?:/(.+))?", Places.tree),
    ("POST", rf"/api/{KIND}/{NAME}/paths-info/{REV}", Places.paths_info),
    ("GET", rf"/api/{KIND}/{NAME}/refs", Places.refs),
    ("GET", rf"/api/{KIND}/{NAME}/commits/{REV}", Places.commits),
    ("POST", rf"/api/{KIND}/{NAME}/(branch|tag)/{REV}", Places.make_ref),
    ("DELETE", rf"/api/{KIND}/{NAME}/(branch|tag)/{REV}", Places.drop_ref),
    ("POST", rf"/(datasets/|spaces/)?{NAME}\.git/info/lfs/objects/batch", Places.lfs_batch),
    ("POST", rf"/(datasets/|spaces/)?{NAME}\.git/info/lfs/verify", Places.lfs_verify),
    ("PUT", r"/_store/(\w+)", Places.lfs_put),
    ("PUT", r"/_parts/(\w+)\.(\d+)", Places.lfs_part),
    ("POST", r"/_parts/(\w+)", Places.lfs_join),
    ("GET|HEAD", rf"/(datasets/|spaces/)?{NAME}/resolve/{REV}/(.+)", Places.file),
]
