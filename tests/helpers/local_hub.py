"""A server on this machine in the Hub's place, for one `with` block."""

import http.server
import json
import threading
from contextlib import contextmanager

from huggingface_hub import constants


@contextmanager
def local_hub(answer: type[http.server.BaseHTTPRequestHandler], monkeypatch):
    """Whoever asks the Hub meanwhile asks `answer` → the running server."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), answer)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    with monkeypatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", address)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE",
                      address + "/{repo_id}/resolve/{revision}/{filename}")
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serve(files: dict[str, bytes], monkeypatch, broken=(), name="me/clip"):
    """A Hub on this machine with one model of that name → the list of what was asked."""
    asked = []

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self, body=True):
            path = self.path.partition("?")[0]
            asked.append(f"{self.command} {path}")
            file = path.rpartition("/")[2]
            status, content = 200, files.get(file)
            if self.path.startswith(f"/api/models/{name}"):
                content = json.dumps({"id": name, "sha": COMMIT, "siblings": [
                    {"rfilename": other} for other in files]}).encode()
            elif not self.path.startswith(f"/{name}/resolve/") or content is None:
                status, content = 404, b"{}"
            if file in broken:
                status, content = (503 if "/api/" in self.path else 403), b"{}"
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{file}"')
            if status == 404:
                self.send_header("X-Error-Code", "EntryNotFound" if f"/{name}/" in self.path
                                 else "RepoNotFound")
            self.end_headers()
            if body:
                self.wfile.write(content)

        def do_HEAD(self):
            self.do_GET(body=False)

        def log_message(self, *arguments):
            pass

    with local_hub(Answer, monkeypatch):
        yield asked
