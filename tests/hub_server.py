"""A Hub on this machine: the part of its API that an upload speaks, which checks what it is given and can be
told to fail. What went over the wire is kept, to be counted.
"""

import base64
import hashlib
import json
import re
import socket
import struct
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import yaml

TOKEN = "hf_" + "sEcReT" * 6  # as a real one, and found by a search for it
OWNER = "ada"
ORGANISATION = "lab"
SMALL = 1 << 20  # bytes; text files below it are kept in git, as on the Hub
REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
MODEL_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[dict] = field(default_factory=list)  # the header and the operations of each

    @property
    def sha(self) -> str:
        return hashlib.sha1(str(len(self.commits)).encode()).hexdigest()


@dataclass
class Fault:
    """What becomes of requests that begin like `begins`: a status, `drop` (the connection ends in the middle
    of what is sent) or `hold` (it is never answered, and `Hub.held` is set).
    """

    begins: str
    what: int | str
    after: int = 0  # requests that are answered before
    times: int = 10**6
    message: str = "told to fail"


@dataclass
class Hub:
    """What the server holds, and how it is to behave."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)  # large files by sha256, committed or not
    parts: dict[tuple[str, int], bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)  # "PUT /lfs/…" of each request
    put: list[tuple[str, int]] = field(default_factory=list)  # (sha256, bytes) of each large file or part
    writable: tuple[str, ...] = (OWNER, ORGANISATION)
    role: str = "write"  # of the token
    part_bytes: int | None = None  # large files come in parts of so many bytes
    xet: str | None = None  # where the chunks of hf_xet go
    faults: list["Fault"] = field(default_factory=list)
    held: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def received(self) -> int:
        """Bytes of large files that came over the wire."""
        return sum(size for _, size in self.put)


@contextmanager
def hub_server(**settings):
    """A Hub that answers until the block ends."""
    hub = Hub(**settings)
    handler = type("OneHub", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.block_on_close = False
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.answer()

    def do_POST(self):
        self.answer()

    def do_PUT(self):
        self.answer()

    def answer(self):
        path = urlsplit(self.path).path
        asked = f"{self.command} {path}"
        self.hub.asked.append(asked)
        fault = self.fault(asked)
        if fault is not None and fault.what == "drop":
            return self.drop()
        if fault is not None and fault.what == "hold":
            self.rfile.read(1)
            self.hub.held.set()
            threading.Event().wait()
        body = self.body()
        if fault is not None:
            return self.reply(fault.what, {"error": fault.message}, X_Error_Message=fault.message)
        for method, pattern, name in ROUTES:
            found = re.fullmatch(pattern, path)
            if method == self.command and found:
                return getattr(self, name)(body, **found.groupdict())
        return self.reply(404, {"error": f"no such route: {asked}"})

    def fault(self, asked: str) -> Fault | None:
        for fault in self.hub.faults:
            if not asked.startswith(fault.begins) or not fault.times:
                continue
            if not fault.after:
                fault.times -= 1
                return fault
            fault.after -= 1
        return None

    def body(self) -> bytes:
        length = self.headers.get("Content-Length")
        if length is not None:
            return self.rfile.read(int(length))
        if self.headers.get("Transfer-Encoding") != "chunked":
            return b""
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def drop(self):
        """The connection ends in the middle of what is sent."""
        self.rfile.read(1)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def reply(self, status: int, value=None, **headers):
        data = json.dumps(value).encode()
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    # ---------------------------------------------------------------- who asks

    def allowed(self, repo: str = "") -> bool:
        """Whether the token is right and may write to a repository; else that was told."""
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.reply(401, {"error": "Invalid username or password."}, X_Error_Message="Invalid credentials")
            return False
        may = self.hub.role == "write" and repo.partition("/")[0] in self.hub.writable
        if repo and not may:
            message = "You don't have the rights to create a model under this namespace"
            self.reply(403, {"error": message}, X_Error_Message=message)
            return False
        return True

    def repository(self, repo: str) -> Repository | None:
        found = self.hub.repositories.get(repo)
        if found is None:
            self.reply(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        return found

    def whoami(self, body):
        if self.allowed():
            token = {"displayName": "test", "role": self.hub.role}
            orgs = [{"name": ORGANISATION, "roleInOrg": "write"}]
            self.reply(200, {"type": "user", "name": OWNER, "orgs": orgs, "auth": {"accessToken": token}})

    # ---------------------------------------------------------------- repositories

    def create(self, body):
        asked = json.loads(body)
        repo = f"{asked.get('organization') or OWNER}/{asked['name']}"
        if not self.allowed(repo):
            return
        url = f"{self.hub.url}/{repo}"
        if repo in self.hub.repositories:
            self.reply(409, {"error": "You already created this model repo", "url": url})
            return
        private = asked.get("visibility") == "private" or asked.get("private") is True
        self.hub.repositories[repo] = Repository(private, {".gitattributes": b""})
        self.reply(200, {"url": url, "name": repo})

    def info(self, body, repo):
        found = self.repository(repo) if self.allowed() else None
        if found is not None:
            siblings = [{"rfilename": path} for path in found.files]
            self.reply(200, {"id": repo, "private": found.private, "sha": found.sha, "siblings": siblings})

    def validate(self, body):
        """As the Hub does: a base_model has to be a name on it."""
        text = json.loads(body)["content"]
        found = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
        data = yaml.safe_load(found[1]) if found else {}
        base = (data or {}).get("base_model")
        names = base if isinstance(base, list) else [base] if base else []
        if any(not MODEL_NAME.fullmatch(name) for name in names):
            message = '"base_model" is not valid. Use a model id from https://hf.co/models.'
            self.reply(400, {"errors": [{"message": message}], "warnings": []})
            return
        self.reply(200, {"errors": [], "warnings": []})

    # ---------------------------------------------------------------- files

    def preupload(self, body, repo):
        found = self.repository(repo) if self.allowed(repo) else None
        if found is None:
            return
        files = []
        for file in json.loads(body)["files"]:
            sample = base64.b64decode(file["sample"])
            large = file["size"] > SMALL or b"\0" in sample or file["path"].endswith(".safetensors")
            there = found.files.get(file["path"])
            mode = "lfs" if large else "regular"
            entry = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
            if there is not None:
                entry["oid"] = hashlib.sha256(there).hexdigest() if large else git_hash(there)
            files.append(entry)
        self.reply(200, {"files": files})

    def batch(self, body, repo):
        if not self.allowed(repo) or self.repository(repo) is None:
            return
        objects = []
        for wanted in json.loads(body)["objects"]:
            oid, size = wanted["oid"], wanted["size"]
            entry = {"oid": oid, "size": size}
            if oid not in self.hub.objects:
                upload = {"href": f"{self.hub.url}/lfs/{oid}"}
                if self.hub.part_bytes and size > self.hub.part_bytes:
                    parts = range(1, -(-size // self.hub.part_bytes) + 1)
                    header = {str(part): f"{self.hub.url}/lfs/{oid}/{part}" for part in parts}
                    upload["header"] = header | {"chunk_size": str(self.hub.part_bytes)}
                verify = {"href": f"{self.hub.url}/{repo}.git/info/lfs/objects/verify"}
                entry["actions"] = {"upload": upload, "verify": verify}
            objects.append(entry)
        self.reply(200, {"transfer": "basic", "objects": objects})

    def whole(self, body, oid):
        self.hub.put.append((oid, len(body)))
        if hashlib.sha256(body).hexdigest() != oid:
            self.reply(400, {"error": "not the object it is said to be"})
            return
        self.hub.objects[oid] = body
        self.reply(200, {})

    def part(self, body, oid, number):
        self.hub.put.append((oid, len(body)))
        self.hub.parts[oid, int(number)] = body
        self.reply(200, {}, ETag=f'"{hashlib.md5(body).hexdigest()}"')

    def complete(self, body, oid):
        numbers = [part["partNumber"] for part in json.loads(body)["parts"]]
        data = b"".join(self.hub.parts[oid, number] for number in numbers)
        right = hashlib.sha256(data).hexdigest() == oid
        if right:
            self.hub.objects[oid] = data
        self.reply(200 if right else 400, {})

    def verify(self, body, repo):
        wanted = json.loads(body)
        there = self.hub.objects.get(wanted["oid"])
        right = self.allowed(repo) and there is not None and len(there) == wanted["size"]
        if right:
            self.reply(200, {})

    def xet_token(self, body, repo):
        if self.allowed(repo):
            self.reply(200, {"casUrl": self.hub.xet, "accessToken": "xet", "exp": 2**33})

    def commit(self, body, repo):
        """All of it or nothing: a large file that is not there refuses it."""
        found = self.repository(repo) if self.allowed(repo) else None
        if found is None:
            return
        lines = [json.loads(line) for line in body.splitlines()]
        files = dict(found.files)
        for line in lines[1:]:
            kind, value = line["key"], line["value"]
            if kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile" and (value["oid"] in self.hub.objects or self.hub.xet):
                files[value["path"]] = self.hub.objects.get(value["oid"], value["oid"].encode())
            elif kind == "deletedFile" and value["path"] in files:
                del files[value["path"]]
            else:
                self.reply(400, {"error": f"cannot: {kind} {value['path']}"})
                return
        found.files = files
        found.commits.append({"header": lines[0]["value"], "operations": lines[1:]})
        self.reply(200, {"commitUrl": f"{self.hub.url}/{repo}/commit/{found.sha}", "commitOid": found.sha})


ROUTES = (
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate"),
    ("GET", rf"/api/models/{REPO}(/revision/main)?", "info"),
    ("POST", rf"/api/models/{REPO}/preupload/main", "preupload"),
    ("POST", rf"/api/models/{REPO}/commit/main", "commit"),
    ("GET", rf"/api/models/{REPO}/xet-write-token/main", "xet_token"),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", "batch"),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/verify", "verify"),
    ("PUT", r"/lfs/(?P<oid>\w{64})", "whole"),
    ("PUT", r"/lfs/(?P<oid>\w{64})/(?P<number>\d+)", "part"),
    ("POST", r"/lfs/(?P<oid>\w{64})", "complete"),
)


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
