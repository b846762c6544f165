"""Tar shards: from a folder, from a server in the Hub's place, odd, broken and incomplete."""

import http.server

import pytest
from local_hub import local_hub
from small_data import encoded, picture
from small_shards import serving, write_set, write_tar

from miniclip.data import shards
from miniclip.data.hub import HubUnreachable
from miniclip.data.images import decode
from miniclip.data.labelled import labelled_images
from miniclip.tasks.zero_shot import zero_shot_report

NAMES = ["sea lion", "bee", "red_fox"]
SAMPLES = [[(0, 2), (1, 0), (2, 1)], [(3, 1), (4, 2)]]
TEMPLATES = ["a photo of a {c}.", "{c}, drawn"]


def colours(rows) -> list[tuple]:
    """What rows show, to be compared with `picture`: (its corner's colour, class number)."""
    return [(decode(image, 8)[0][0, 0].tolist(), label) for image, label in rows]


def expected(samples=SAMPLES, kind="webp"):
    return [(decode(encoded(picture(i), kind.upper()), 8)[0][0, 0].tolist(), label)
            for shard in samples for i, label in shard]


@pytest.mark.parametrize("kind", ["webp", "png", "jpg"])
def test_a_folder_of_shards(folder, kind):
    kind_of_file = "jpeg" if kind == "jpg" else kind
    root = write_set(folder / "set", NAMES, SAMPLES, TEMPLATES, kind=kind_of_file)
    rows, names, templates = labelled_images(str(root))
    assert names == ["sea lion", "bee", "red fox"]
    assert templates == ["a photo of a {}.", "{}, drawn"]
    assert colours(rows) == expected(kind=kind_of_file)
    _, names, _ = labelled_images(str(root), None, {"bee": "honey bee"})
    assert names[1] == "honey bee"


def test_without_templates_of_its_own(folder):
    assert labelled_images(str(write_set(folder / "set", NAMES, SAMPLES))).templates is None


def test_splits_of_shards(folder):
    root = write_set(folder / "set", NAMES, SAMPLES)
    write_set(folder / "set", NAMES, [[(5, 0)]], split="train")
    assert len(list(labelled_images(str(root)).rows)) == 5  # test, without being asked
    assert colours(labelled_images(str(root), "train").rows) == expected([[(5, 0)]])
    with pytest.raises(ValueError, match="no split 'dev' in .*; found: test, train"):
        labelled_images(str(root), "dev")


def test_from_the_hub(folder, monkeypatch):
    write_set(folder / "me/wds_small", NAMES, SAMPLES, TEMPLATES)
    with serving(folder, monkeypatch) as asked:
        rows, names, templates = labelled_images("me/wds_small")
        assert len(names) == 3 and len(templates) == 2
        assert not any(".tar" in path for path, _ in asked)  # shards are read when they are needed
        assert colours(rows) == expected()
    assert sum(".tar" in path for path, _ in asked) == 2  # each once


def test_a_connection_that_breaks_again_and_again(folder, monkeypatch):
    """Each answer ends after 1,000 bytes: the next goes on there, and nothing is lost."""
    write_set(folder / "me/wds_small", NAMES, SAMPLES)
    monkeypatch.setattr(shards, "WAIT", 0.0)
    with serving(folder, monkeypatch, break_after=1000) as asked:
        assert colours(labelled_images("me/wds_small").rows) == expected()
    places = [int(place[6:-1]) for path, place in asked if path.endswith("/0.tar") and place]
    assert places == sorted(places) and places[0] == 1000 and len(places) > 3


def test_a_server_that_knows_no_ranges(folder, monkeypatch):
    """It gives the whole file again; what is known is skipped."""
    write_set(folder / "me/wds_small", NAMES, SAMPLES)
    with serving(folder, monkeypatch, ranges=False):
        download = shards.HubFiles("me/wds_small", set()).open("test/0.tar")
        content = download.read(700)
        download.close()
        while part := download.read(5000):
            content += part
    assert content == (folder / "me/wds_small/test/0.tar").read_bytes()


def test_a_shard_that_is_not_on_the_hub(folder, monkeypatch):
    write_set(folder / "me/wds_small", NAMES, SAMPLES)
    (folder / "me/wds_small/test/1.tar").unlink()
    with serving(folder, monkeypatch) as asked:
        with pytest.raises(HubUnreachable, match=r"test/1.tar.*404"):
            list(labelled_images("me/wds_small").rows)
    assert sum("1.tar" in path for path, _ in asked) == 1  # a 404 is not asked for again


def test_a_hub_that_goes_away(folder, monkeypatch):
    write_set(folder / "me/wds_small", NAMES, SAMPLES)
    monkeypatch.setattr(shards, "WAIT", 0.0)
    with serving(folder, monkeypatch):
        rows = labelled_images("me/wds_small").rows
    with pytest.raises(HubUnreachable, match="refused"):
        list(rows)


def test_odd_members_are_counted_and_not_fatal(folder, loaded):
    """A note, a folder, half samples, a class that is no number, an image that is none."""
    root = write_set(folder / "set", NAMES, [[(0, 2)]])
    good = encoded(picture(1), "WEBP")
    write_tar(root / "test/0.tar", {
        "README": b"hello", "deep/er/a.cls": b" 1\n", "deep/er/a.WEBP": good,
        "b.webp": good, "c.cls": b"0", "d.cls": b"bee", "d.webp": good, "e.cls": b"2",
        "e.webp": b"broken", "f.cls": b"-1", "f.webp": good, "g.json": b"{}", "g.webp": good,
        "g.cls": b"2"})
    rows = list(labelled_images(str(root)).rows)
    assert [label for image, label in rows if image] == [1, 2, 2]
    figures, _ = zero_shot_report(loaded, iter(rows), NAMES)
    assert figures["images"] == 2 and figures["unreadable"] == len(rows) - 2 == 6


@pytest.mark.parametrize("breakage, message", [
    (lambda root: (root / "test/1.tar").unlink(), "nshards.txt says 2 shards; test/1.tar is missi"),
    (lambda root: (root / "test/1.tar").write_bytes(b"no tar" * 200), "test/1.tar is no tar file"),
    (lambda root: (root / "test/0.tar").write_bytes(
        (root / "test/0.tar").read_bytes()[:1700]), "test/0.tar is no tar file, or breaks off"),
    (lambda root: (root / "test/0.tar").write_bytes(
        (root / "test/0.tar").read_bytes()[:2048]), "test/0.tar is no tar file, or breaks off"),
    (lambda root: (root / "test/0.tar").write_bytes(
        b"".join([(root / "test/0.tar").read_bytes()[:2048], b"x" * 512,
                  (root / "test/0.tar").read_bytes()[2560:]])), "0.tar is no tar file, or breaks"),
    (lambda root: (root / "test/nshards.txt").write_text("two"), "must be a number of shards"),
    (lambda root: (root / "test/nshards.txt").write_text(""), "must be a number of shards"),
    (lambda root: (root / "classnames.txt").write_text("bee"), r"s0000: class 2; .* names 1"),
    (lambda root: (root / "zeroshot_classification_templates.txt").write_text("a {} photo"),
     "template 'a {} photo' has no {c}|has no"),
])
def test_a_set_that_is_broken(folder, breakage, message):
    root = write_set(folder / "set", NAMES, SAMPLES, TEMPLATES)
    breakage(root)
    if "template" in message:
        (root / "zeroshot_classification_templates.txt").write_text("a photo")
    with pytest.raises(ValueError, match=message) as error:
        list(labelled_images(str(root)).rows)
    assert "\n" not in str(error.value)


def test_a_key_ends_at_the_first_dot(folder):
    write_tar(folder / "x.tar", {"a/1.0.jpg": b"x", "a/1.cls": b"0", "b/1.cls": b"1"})
    with open(folder / "x.tar", "rb") as file:
        assert list(shards.samples(file)) == [
            ("a/1", {"0.jpg": b"x", "cls": b"0"}), ("b/1", {"cls": b"1"})]


def test_a_private_set_whose_files_lie_elsewhere(monkeypatch):
    """The Hub gets the user's token, and sends us to a storage that must not get it, whose address
    is asked directly from then on, until it is no longer valid; and the Hub is asked slowly."""
    content, asked = bytes(range(256)) * 4, []

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            token, headers, body = self.headers.get("Authorization"), {}, b""
            asked.append((self.path.split("/")[1], token))
            times = sum(place == "datasets" for place, _ in asked)
            if self.path.startswith("/datasets/me/private/resolve/v1/"):
                if token != "Bearer secret":
                    status = 401
                elif times == 1:
                    status, headers = 429, {"Retry-After": "0"}
                else:
                    status, port = 302, self.server.server_port
                    headers = {"Location": f"http://localhost:{port}/storage/{times}"}
            elif self.path == "/storage/2" and len(asked) > 4:
                status = 403
            else:
                first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
                status, body = 206, content[int(first):int(last) + 1]
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    files = shards.HubFiles("me/private", {"a.tar"}, "v1")
    with local_hub(Answer, monkeypatch):
        monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
        with pytest.raises(HubUnreachable, match="401"):
            files.read("a.tar", 3, 10)
        del asked[:]
        monkeypatch.setattr("huggingface_hub.get_token", lambda: "secret")
        for start in (3, 100, 200):
            assert files.read("a.tar", start, 10) == content[start:start + 10]
    assert asked == [("datasets", "Bearer secret"), ("datasets", "Bearer secret"),
                     ("storage", None), ("storage", None), ("storage", None),
                     ("datasets", "Bearer secret"), ("storage", None)]


def test_threads_that_find_an_address_expired_at_once(monkeypatch):
    """Each asks the Hub again; whoever comes second finds the address forgotten already."""
    files = shards.HubFiles("me/pairs", {"a.tar"}, direct={"a.tar": "http://storage/expired"})

    class Answers:
        def __init__(self, address, start, end):
            self.found, self.left = address, [b"content", b""]

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def read(self):
            if self.found.endswith("expired"):
                files.direct.clear()  # by another thread
                raise HubUnreachable("403")
            return self.left.pop(0)

    monkeypatch.setattr(shards, "Download", Answers)
    assert files.read("a.tar", 0, 7) == b"content"
