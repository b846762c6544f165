"""A server on this machine in the Hub's place, for one `with` block."""

import http.server
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
