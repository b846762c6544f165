"""A run on the Hub: what is sent, the card, what goes wrong; and `miniclip.load` reads it again."""

import base64
import http.server
import json
import types

import pytest
from huggingface_hub import constants
from local_hub import local_hub, serve
from small_models import write_run

import miniclip
from miniclip.config import TrainConfig, save_config
from miniclip.weights.share import model_card, push


def recalls(value):
    return {"R@1": value, "R@5": 2 * value, "R@10": 3 * value, "median_rank": 12.0}


@pytest.fixture
def run(tmp_path):
    folder = write_run(tmp_path / "run")
    save_config(TrainConfig(
        start_from=str(tmp_path / "run"), data="/home/you/pairs"), folder / "train.json")
    (folder / "metrics.json").write_text(json.dumps({
        "image_to_text": recalls(10.0), "text_to_image": recalls(9.0), "images": 200,
        "captions": 1000, "training": {
            "data": "dogs:train", "summary": "900 images, 4,500 captions", "steps": 700,
            "batch_size": 128, "seconds": 90.0, "parameters": 12345, "device": "cpu, x86_64"}}))
    (folder / "retrieval.png").write_bytes(b"a picture")
    (folder / "state.pt").write_bytes(b"of no use to others")
    return folder


@pytest.fixture
def api(monkeypatch):
    """Stands for huggingface_hub.HfApi → what it was asked to do."""
    asked = []

    class Api:
        def model_info(self, repository):
            return types.SimpleNamespace(private="public" not in repository)

        def create_repo(self, repository, private, exist_ok):
            asked.append(("create", repository, private))

        def upload_folder(self, repo_id, folder_path, allow_patterns, commit_message):
            from huggingface_hub.utils import filter_repo_objects
            names = [path.name for path in folder_path.iterdir()]
            asked.append(("folder", sorted(filter_repo_objects(names,
                                                               allow_patterns=allow_patterns))))

        def upload_file(self, repo_id, path_in_repo, path_or_fileobj, commit_message):
            asked.append((path_in_repo, path_or_fileobj.decode()))

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    return asked


def test_what_is_sent(run, api):
    assert push(run, "me/dogs", "mit", True) == "https://huggingface.co/me/dogs"
    (_, name, private), (_, files), (_, settings), (readme, card) = api
    assert (name, private, readme) == ("me/dogs", True, "README.md")
    assert files == ["config.json", "metrics.json", "model.safetensors", "retrieval.png",
                     "tokenizer.json"]
    assert card == model_card(run, "me/dogs", "mit")
    sent = json.loads(settings)  # train.json, without the machine's paths
    assert (sent["data"], sent["start_from"], sent["seed"]) == ("pairs", "run", 0)


def test_what_is_public_does_not_become_private_by_itself(run, api):
    with pytest.raises(ValueError, match="it is there already, and public"):
        push(run, "me/public", "mit", True)
    assert [kind for kind, *_ in api] == ["create"]


def test_the_card_says_what_the_run_says(run):
    card = model_card(run, "me/dogs", "cc-by-4.0")
    assert card.startswith("---\nlicense: cc-by-4.0\n") and 'miniclip.load("me/dogs")' in card
    assert "| image → text | 10.0 | 20.0 | 30.0 | 12.0 |" in card
    assert "12,345 parameters, trained with miniclip from run on dogs (900 images" in card
    assert "chance at R@10 is 5.0" in card and "700 steps of 128 pairs in 1.5 minutes" in card
    assert str(run.parent) not in card  # no path of the machine


@pytest.mark.parametrize("repository, license, message", [
    ("dogs", "mit", "'dogs' is no name on the Hub; it must be USER/NAME"),
    ("me/dogs", "all mine", "license 'all mine' is none of the Hub's"),
    ("me/dogs", "", "license '' is none")])
def test_what_is_refused_before_anything_is_sent(run, api, repository, license, message):
    with pytest.raises(ValueError, match=message):
        push(run, repository, license)
    assert not api


def test_a_run_that_has_not_ended(run, api):
    (run / "metrics.json").unlink()
    with pytest.raises(ValueError, match="only a run that has ended can be shared"):
        push(run, "me/dogs", "mit")
    with pytest.raises(ValueError, match="is no run's folder"):
        push(run.parent, "me/dogs", "mit")


def test_a_hub_that_does_not_answer(run):
    """The endpoint of every test is a closed port of this machine."""
    with pytest.raises(ValueError, match="the Hub did not take me/dogs: ") as error:
        push(run, "me/dogs", "mit")
    assert "\n" not in str(error.value)


def test_a_run_of_the_hub_is_loaded(run, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    files = {path.name: path.read_bytes() for path in run.iterdir()}
    with serve(files, monkeypatch, name="me/dogs"):
        model, tokenizer, transform = miniclip.load("me/dogs")
    expected, own, _ = miniclip.load(run)
    assert model.config == expected.config and tokenizer.symbols == own.symbols
    assert miniclip.load("me/dogs")[2].size == transform.size  # from the cache


def test_a_hub_on_this_machine_gets_it_all(run, monkeypatch):
    """huggingface_hub's own requests: the repository is made, and two kinds of commits arrive."""
    got, told = {}, []

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            path = self.path.partition("?")[0]
            told.append(path)
            answer = {"url": "http://127.0.0.1/me/dogs", "name": "me/dogs"}
            if path.endswith("/preupload/main"):
                answer = {"files": [{"path": file["path"], "uploadMode": "regular",
                                     "shouldIgnore": False} for file in json.loads(body)["files"]]}
            if path.endswith("/commit/main"):
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        got[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                answer = {"success": True, "commitOid": "0" * 40,
                          "commitUrl": "http://127.0.0.1/me/dogs/commit/" + "0" * 40}
            self.answer(answer)

        def do_GET(self):
            self.answer({"id": "me/dogs", "private": True, "siblings": []})

        def answer(self, answer):
            content = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments):
            pass

    with local_hub(Answer, monkeypatch):
        assert push(run, "me/dogs", "mit", True) == "https://huggingface.co/me/dogs"
    assert told[0] == "/api/repos/create"
    assert sorted(got) == ["README.md", "config.json", "metrics.json", "model.safetensors",
                           "retrieval.png", "tokenizer.json", "train.json"]
    assert got["model.safetensors"] == (run / "model.safetensors").read_bytes()
    assert got["README.md"].decode() == model_card(run, "me/dogs", "mit")
