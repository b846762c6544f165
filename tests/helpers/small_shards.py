"""Sets of tar shards as the Hub has them, in a folder and behind a local server."""

import http.server
import io
import json
import tarfile
from contextlib import contextmanager
from pathlib import Path

from local_hub import local_hub
from small_data import encoded, picture


def write_tar(path: Path, members: dict[str, bytes]):
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def write_set(root: Path, names: list[str], shards: list[list[tuple]], templates=None,
              split="test", kind="webp"):
    """shards: of each the samples (number of the picture or bytes, class number)."""
    (root / split).mkdir(parents=True)
    (root / "classnames.txt").write_text("\n".join(names) + "\n")
    if templates:
        (root / "zeroshot_classification_templates.txt").write_text("\n".join(templates) + "\n")
    (root / split / "nshards.txt").write_text(str(len(shards)))
    for number, samples in enumerate(shards):
        members = {}
        for i, (image, label) in enumerate(samples):
            content = image if isinstance(image, bytes) else encoded(picture(image), kind.upper())
            members[f"s{i:04d}.cls"] = str(label).encode()
            members[f"s{i:04d}.{kind}"] = content
        write_tar(root / split / f"{number}.tar", members)
    return root


@contextmanager
def serving(root: Path, monkeypatch, break_after: int | None = None, ranges=True):
    """A local server in place of the Hub: root/OWNER/NAME/… are data sets. → what was asked.

    break_after: each answer with a shard ends after so many bytes, though it has promised more.
    ranges: whether it gives the rest of a file; else always the whole.
    """
    asked = []

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers.get("Range")))
            if self.path.startswith("/api/datasets/"):
                return self.answer(*listing(root, self.path.split("?")[0][14:]))
            name = self.path.split("?")[0].removeprefix("/datasets/").replace(
                "/resolve/main/", "/")
            if not (root / name).is_file():
                return self.answer(404, b"no such file")
            content, part = (root / name).read_bytes(), slice(None)
            if ranges and self.headers.get("Range"):
                start, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
                part = slice(int(start), int(last) + 1 if last else None)
                if part.start >= len(content):
                    return self.answer(416, b"")
            short = break_after if name.endswith(".tar") else None
            self.answer(200 if part == slice(None) else 206, content[part], short)

        def answer(self, status, content, short=None):
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[:short])
            if short is not None and short < len(content):
                self.close_connection = True

        def log_message(self, *arguments):
            pass

    with local_hub(Answer, monkeypatch):
        yield asked


def listing(root: Path, name: str) -> tuple[int, bytes]:
    """The Hub's answer to what files a data set has."""
    if not (root / name).is_dir():
        return 404, b'{"error": "Repository not found"}'
    files = [{"rfilename": path.relative_to(root / name).as_posix()}
             for path in sorted((root / name).rglob("*")) if path.is_file()]
    return 200, json.dumps({"id": name, "siblings": files, "tags": [], "downloads": 0,
                            "private": False, "likes": 0}).encode()
