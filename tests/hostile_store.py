"""A tracking server that answers as a hostile one would, on a free port of this machine."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

API, FILES = "/api/2.0/mlflow/", "/api/2.0/mlflow-artifacts/artifacts"
CHUNK = bytes(2**20)
Listing = Callable[[str], list[dict[str, Any]]]


def a_file(path: str, size: int = 10) -> dict[str, Any]:
    """How MLflow's server lists a file."""
    return {"path": path, "is_dir": False, "file_size": size}


def a_folder(path: str) -> dict[str, Any]:
    """How MLflow's server lists a folder."""
    return {"path": path, "is_dir": True}


@dataclass
class HostileStore:
    """Says that version 1 of every model lies at `location`, which `listing` lists by folder.

    A file's content is `content`, again and again while `endless`; a listing comes with `padding`
    bytes of nothing. `asked` are the paths that were asked for, `logins` what was shown.
    """

    location: str = "mlflow-artifacts:/models/1"
    listing: Listing = lambda _: []
    content: bytes = b"x"
    endless: bool = False
    padding: int = 0
    port: int = 0
    asked: list[str] = field(default_factory=list)
    logins: set[str] = field(default_factory=set)

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def answer(self, path: str, query: dict[str, list[str]]) -> Any:
        """What it says to a request, as JSON; None for a file."""
        match path.removeprefix(API):
            case "model-versions/get-download-uri":
                return {"artifact_uri": self.location}
            case "registered-models/alias":
                return {"model_version": {"name": "m", "version": "1", "source": self.location}}
            case "runs/get":
                info = {"run_id": "r", "experiment_id": "0", "artifact_uri": self.location}
                return {"run": {"info": info, "data": {}}}
            case "registered-models/get":
                return {"registered_model": {"name": "m"}}
            case "model-versions/get":
                return {"model_version": {"name": "m", "version": "1", "source": self.location}}
        if path == FILES:
            return {"files": self.listing(query.get("path", [""])[0])}
        return {} if path.startswith(API) or path.endswith("server-info") else None

    @contextmanager
    def running(self) -> Iterator["HostileStore"]:
        """Answers inside."""
        store = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                store.asked.append(unquote(self.path))
                store.logins.add(self.headers.get("Authorization", ""))
                answer = store.answer(parts.path, parse_qs(parts.query))
                self.send_response(200)
                self.end_headers()
                try:
                    if answer is not None:
                        self.wfile.write(json.dumps(answer).encode())
                        for _ in range(store.padding // len(CHUNK) if parts.path == FILES else 0):
                            self.wfile.write(b" " * len(CHUNK))
                        return
                    self.wfile.write(store.content)
                    while store.endless:
                        self.wfile.write(CHUNK)
                except OSError:
                    return

            do_POST = do_GET  # noqa: N815  # as http.server names them

            def log_message(self, *_: object) -> None:
                """Nothing on the standard error."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        self.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
