"""Every source of pairs: found, read, and gone wrong."""

import http.server
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from local_hub import local_hub
from small_data import (
    SIZE,
    check_pairs,
    encoded,
    load,
    picture,
    texts,
    write_csv,
    write_images,
    write_shard,
)

from miniclip.data import scenes, sources
from miniclip.data.hub import HubUnreachable, Listing
from miniclip.data.images import fit
from miniclip.data.pairs import load_pairs
from miniclip.data.sources import HUB_DEFAULT, Source

pytestmark = pytest.mark.usefixtures("cache")

# ------------------------------------------------------------------------------- four sources


def test_parquet_shards_as_the_hub_has_them(folder):
    write_shard(folder / "train-00000-of-00002.parquet", range(5))
    write_shard(folder / "train-00001-of-00002.parquet", range(5, 8))
    write_shard(folder / "val-00000-of-00001.parquet", [8, 9])
    assert Source.find(str(folder)).kind == "parquet"
    pairs = load(folder)
    check_pairs(pairs, range(8))
    assert pairs.summary == "8 images, 40 captions"
    assert pairs.name == "data:train"  # the folder's own name, not where it lies
    check_pairs(load(folder, "validation"), [8, 9])  # "val" is one of its names
    check_pairs(load(folder, "dev"), [8, 9])


def test_a_name_longer_than_a_disk_allows_is_missing(folder):
    files(captions__csv=TABLE + "a" * 300 + ".jpg,a dog\n")(folder)
    assert load(folder, "all").summary == (
        f"3 images, 3 captions; skipped 1: missing, such as '{'a' * 59}")


def test_two_names_of_one_split_are_one(folder):
    write_shard(folder / "val-0.parquet", range(3))
    write_shard(folder / "validation-0.parquet", range(3, 5))
    check_pairs(load(folder, "validation"), range(5))


@pytest.mark.parametrize("names", [["caption"], ["caption_0", "caption_1"]])
def test_parquet_with_other_numbers_of_captions_and_gaps(folder, names):
    write_shard(folder / "train.parquet", range(4), captions=[
        ["a dog"] * len(names), [" a cat\n"] * len(names), [None] * len(names), [""] * len(names)])
    table = pq.read_table(folder / "train.parquet")
    pq.write_table(table.rename_columns(["image", *names]), folder / "train.parquet")
    write_shard(folder / "val.parquet", [5])
    pairs = load(folder)
    assert pairs.captions == [["a dog"] * len(names), ["a cat"] * len(names)]
    assert pairs.summary.endswith("; skipped 2: without a caption, such as '2.png'")


@pytest.mark.parametrize("where", ["", "images", "Images", "Flicker8k_Dataset"])
@pytest.mark.parametrize("file", ["captions.csv", "captions.txt"])
def test_images_with_a_table_of_captions(folder, where, file):
    """captions.txt with Images/ is how Kaggle hands Flickr8k out."""
    write_images(folder / where, range(10))
    write_csv(folder / file, range(10))
    assert Source.find(str(folder)).kind == "folder"
    check_pairs(load(folder, "all"), range(10), lambda i: [f"{t}, in colour" for t in texts(i)])


def test_without_lists_a_fixed_tenth_is_validation(folder):
    write_images(folder / "Images", range(25))
    write_csv(folder / "captions.txt", range(25), count=2)

    def ids(split):
        return [int(captions[0].split()[4].strip(",")) for captions in load(folder, split).captions]

    train, validation = ids("train"), ids("validation")
    assert len(validation) == 3 and sorted(train + validation) == list(range(25))
    write_csv(folder / "captions.txt", reversed(range(25)), count=2)  # the order is no matter
    assert sorted(ids("validation")) == sorted(validation)


def test_the_original_flickr8k(folder):
    write_images(folder / "Flicker8k_Dataset", range(9))
    rows = [f"{i}.jpg#{k}\t{text}" for i in range(9) for k, text in enumerate(texts(i))]
    rows += ["9.jpg.1#0\ta row of the original whose image never existed ."]
    (folder / "Flickr8k.token.txt").write_text("\n".join(rows) + "\n")
    for stem, ids in (("train", [4, 2, 0, 1, 3]), ("dev", [6, 5]), ("test", [7, 8])):
        names = "".join(f"{i}.jpg\n" for i in ids)
        (folder / f"Flickr_8k.{stem}Images.txt").write_text(names)
    check_pairs(load(folder), [4, 2, 0, 1, 3])
    check_pairs(load(folder, "validation"), [6, 5])
    check_pairs(load(folder, "test"), [7, 8])
    assert load(folder, "all").summary == (
        "9 images, 45 captions; skipped 1: missing, such as '9.jpg.1'")


def test_the_built_in_scenes(monkeypatch):
    monkeypatch.setattr(sources, "SHAPES_SPLITS", {"train": (12, 1), "validation": (5, 2)})
    source = Source.find("shapes")
    pairs = load_pairs(source, "train", 64)
    images, captions, _ = scenes.generate(12, 1)
    assert (pairs.images == images).all() and pairs.captions == captions
    small = load_pairs(source, "train", 32, 3)
    assert (small.images == fit(images[:3], 32)).all() and small.images.shape == (3, 32, 32, 3)
    assert load_pairs(source, "validation", 64).captions == scenes.generate(5, 2)[1]


def test_the_splits_of_the_scenes_have_seeds_of_their_own():
    seeds = [seed for _, seed in sources.SHAPES_SPLITS.values()]
    assert len(set(seeds)) == len(seeds) == 3


# ------------------------------------------------------------------------------- which source


def test_shapes_before_a_path_before_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("shapes").mkdir()
    assert Source.find("shapes") == Source("shapes", "shapes")
    assert Source.find("./shapes") == Source("folder", str(tmp_path / "shapes"))
    assert Source.find("me/photos") == Source("hub", "me/photos")
    Path("me/photos").mkdir(parents=True)
    assert Source.find("me/photos") == Source("folder", str(tmp_path / "me/photos"))
    Path("me/photos/train.parquet").touch()
    assert Source.find("me/photos").kind == "parquet"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Source.find("~/me/photos") == Source.find(Path("me/photos"))


def test_the_environment_speaks_when_data_does_not(tmp_path, monkeypatch):
    assert Source.find() == Source.find("") == Source("hub", HUB_DEFAULT, explicit=False)
    monkeypatch.setenv("MINICLIP_DATA", str(tmp_path))
    assert Source.find() == Source("folder", str(tmp_path), explicit=True)
    assert Source.find("shapes").kind == "shapes"
    monkeypatch.setenv("MINICLIP_DATA", "shapes")
    assert Source.find(None).kind == "shapes"
    monkeypatch.setenv("MINICLIP_DATA", "")
    assert not Source.find().explicit


@pytest.mark.parametrize("text", [
    "nowhere", "/no/such/folder", "./a/b", "a/b/c", "a b/c", "-", "a/", "https://a.b/c"])
def test_what_is_no_source_is_named(text):
    with pytest.raises(ValueError, match="no such folder; give 'shapes', a folder or") as error:
        Source.find(text)
    assert text in str(error.value) and "\n" not in str(error.value)


def test_a_file_is_a_table_or_refused(tmp_path):
    for name in ("captions.csv", "pairs.jsonl", "train.parquet"):
        (tmp_path / name).touch()
        kind = "parquet" if name.endswith("parquet") else "folder"
        assert Source.find(str(tmp_path / name)) == Source(kind, str(tmp_path / name))
    (tmp_path / "dog.jpg").touch()
    with pytest.raises(ValueError, match="dog.jpg is a file; name the folder.*, or a table"):
        Source.find(str(tmp_path / "dog.jpg"))


# ------------------------------------------------------------------------------- sources gone wrong


def shard(columns):
    return lambda folder: pq.write_table(pa.table(columns), folder / "train-0-of-1.parquet")


def files(**contents):
    def write(folder):
        write_images(folder, range(3))
        for name, content in contents.items():
            content = content.encode() if isinstance(content, str) else content
            (folder / name.replace("__", ".")).write_bytes(content)
    return write


TABLE = "image,caption\n0.jpg,a dog\n1.jpg,a cat\n2.jpg,a bird\n"
PNG = encoded(picture(0))


@pytest.mark.parametrize("write, split, words", [
    # parquet
    (shard({"caption_0": ["a"]}), "train", "needs a column of images, .*; found: caption_0"),
    (shard({"image": [PNG], "caption_x": ["a"]}), "train", "captions, such .*: image, caption_x"),
    (shard({"image": [PNG], "caption": ["a"]}), "test", "no split 'test' in .*; found: train"),
    (shard({"image": [PNG], "caption": [7]}), "train", "row 0: captions must be text; found: 7"),
    (shard({"image": [1], "caption": ["a"]}), "train", "row 0: an image must be bytes.*found: 1"),
    (shard({"image": [PNG][:0], "caption": ["a"][:0]}), "train", "train"),
    (shard({"image": ["0.jpg"], "caption": ["a"]}), "train", r"1: missing, such as '0.jpg'\)"),
    (files(train__parquet="no parquet"), "train", "data, train, can't be read: .*Parquet"),
    (files(train__parquet=b""), "train", "data, train, can't be read: .*0 bytes"),
    # a folder
    (files(), "train", r"needs \*.parquet, or images with a file .*; found: 0.jpg, 1.jpg, 2.jpg"),
    (files(captions__csv=""), "train", "must begin with a header .*; found: an empty file"),
    (files(captions__csv="\n\n"), "train", "header such as image,caption; found: an empty file"),
    (files(captions__csv="image,caption\n"), "train", "captions.csv holds no captions"),
    (files(captions__txt="bild,text\n0.jpg,a"), "train", "of images, such as .*: bild, text"),
    (files(captions__csv=TABLE + "2.jpg\n"), "train", "line 5: expected image,caption.*: 2.jpg"),
    (files(captions__csv=TABLE + "2.jpg,a dog, a cat\n"), "train",
     "line 5: expected .*quote a caption.*; found: 2.jpg,a dog,a cat"),
    (files(captions__csv=TABLE + '2.jpg,"never closed' + "x" * 200_000), "train",
     "captions.csv, line 5: field larger.*an open quote"),
    (files(captions__csv=TABLE.replace("a cat", '"a cat')), "all", "captions.csv, line 4: unexpec"),
    (files(captions__csv=TABLE.replace("a cat", '"a cat').replace("a bird", '"a bird')), "all",
     "captions.csv, line 4: .*expected after"),  # two quotes, and what is between them
    (files(captions__csv=TABLE.encode() + b"2.jpg,\x81\n"), "train", "is not UTF-8 text.*0x81"),
    (files(captions__csv=TABLE), "test", "no split 'test' in .*; found: all, train, validation"),
    (files(captions__csv=TABLE.replace("jpg", "gif")), "all",
     r"all: nothing to learn from \(0 images, 0 captions; skipped 3: missing, such as '0.gif'\)"),
    (files(captions__csv="image,caption\n0.jpg,\n1.jpg, \n"), "all", "skipped 2: without a cap"),
    # the original lists
    (files(Flickr8k__token__txt=""), "train", r"holds no captions.*name.jpg#0<tab>caption"),
    (files(Flickr8k__token__txt="0.jpg a dog\n"), "train", "row 1: expected name.jpg#0<tab>capt"),
    (files(Flickr8k__token__txt="0.jpg#0\ta", Flickr_8k__trainImages__txt="0.jpg"), "validation",
     "no split 'validation' in .*; found: all, train"),
    (files(Flickr8k__token__txt="0.jpg#0\ta", Flickr_8k__trainImages__txt=b"\xe9.jpg"), "train",
     "Flickr_8k.trainImages.txt is not UTF-8"),
    (files(Flickr8k__token__txt="0.jpg#0\ta", Flickr_8k__trainImages__txt="1.jpg\n2.jpg"), "train",
     "skipped 2: without a caption"),
])
def test_a_source_gone_wrong_is_one_clear_line(folder, cache, write, split, words):
    write(folder)
    with pytest.raises(ValueError, match=words) as error:
        load(folder, split)
    assert "\n" not in str(error.value) and "data" in str(error.value)
    assert not list(cache.glob("*"))  # and nothing half done is left behind


def test_unknown_split_of_the_scenes():
    with pytest.raises(ValueError, match="no split 'extra' in shapes; found: test, train, val"):
        load_pairs(Source.find("shapes"), "extra", 64)


def test_a_table_as_spreadsheets_write_it(folder):
    """A byte-order mark, Windows line ends, spaces, capitals, empty lines, quotes, accents."""
    write_images(folder, range(2))
    (folder / "captions.csv").write_bytes(
        "\ufeffImage, Caption\r\n0.jpg, a dog\r\n\r\n1.jpg,\"a “café”, \"\"red\"\"\"\r\n".encode())
    assert load(folder, "all").captions == [["a dog"], ['a “café”, "red"']]


# ------------------------------------------------------------------------------- the Hub


@pytest.fixture
def hub(monkeypatch):
    """A Hub on this machine that gives every question the same status; → the list of questions."""
    asked = []

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(server.status)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *arguments):
            pass

    with local_hub(Answer, monkeypatch) as server:
        server.asked = asked
        yield server


@pytest.fixture
def hub_of(folder, monkeypatch):
    """`datasets` as it is when the Hub serves what lies in `folder`, split by split."""
    import datasets
    stream = datasets.load_dataset

    def load_dataset(name, configuration, streaming):
        assert name == "me/photos" and streaming
        if configuration == "several":
            raise ValueError("Config name is missing.\nPlease pick one among the available "
                             "configs: ['en', 'vi']\nExample of usage:\n\t`load_dataset('me')`")
        assert configuration in (None, "vi")
        found = {path.stem: str(path) for path in sorted(folder.glob("*.parquet"))}
        return stream("parquet", data_files=found, streaming=True)

    monkeypatch.setattr(sources, "check_hub", lambda *_: Listing(set(), "main"))
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return folder


@pytest.mark.parametrize("source", [
    Source("hub", "me/photos"), Source("hub", HUB_DEFAULT, explicit=False)])
def test_a_refused_connection_is_told_at_once(source, cache):
    """The endpoint of every test is a closed port of this machine; see conftest.py."""
    start = time.monotonic()
    with pytest.raises(HubUnreachable, match="refused") as error:
        load_pairs(source, "train", SIZE)
    assert time.monotonic() - start < 10 and "\n" not in str(error.value)
    assert isinstance(error.value, ConnectionError) and not list(cache.glob("*"))


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_hub_in_trouble_is_out_of_reach(hub, status):
    hub.status = status
    with pytest.raises(HubUnreachable, match=str(status)) as error:
        load_pairs(Source("hub", "me/photos"), "train", SIZE)
    assert "\n" not in str(error.value) and len(hub.asked) == 1  # asked once, not for minutes


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_data_set_that_is_not_there(hub, status):
    """Asked for by name it is an error; the default gives way to the built-in scenes."""
    hub.status = status
    with pytest.raises(ValueError, match="the Hub has no public data set 'me/photos'"):
        load_pairs(Source("hub", "me/photos"), "train", SIZE)
    with pytest.raises(HubUnreachable, match=str(status)):
        load_pairs(Source.find(), "train", SIZE)
    assert [path.split("/datasets/")[1] for path in hub.asked] == ["me/photos", HUB_DEFAULT]


def test_rows_of_the_hub(hub_of):
    write_shard(hub_of / "train.parquet", range(6))
    write_shard(hub_of / "valid.parquet", [7])
    source = Source.find("me/photos")
    check_pairs(load_pairs(source, "train", SIZE), range(6))
    check_pairs(load_pairs(source, "train", SIZE, 4), range(4))
    check_pairs(load_pairs(source, "validation", SIZE), [7])
    with pytest.raises(ValueError, match="no split 'test' in me/photos; found: train, valid"):
        load_pairs(source, "test", SIZE)


def test_configurations_of_the_hub(hub_of):
    write_shard(hub_of / "train.parquet", range(3))
    write_shard(hub_of / "valid.parquet", [7])
    assert Source.find("me/photos:vi") == Source("hub", "me/photos:vi")
    check_pairs(load_pairs(Source.find("me/photos:vi"), "train", SIZE), range(3))
    with pytest.raises(ValueError, match="has several configurations: 'en', 'vi'; name one"):
        load_pairs(Source.find("me/photos:several"), "train", SIZE)


@pytest.mark.parametrize("error", [OSError("403\n\nForbidden"), RuntimeError("client\nclosed")])
def test_a_hub_that_answers_but_keeps_its_files(hub_of, cache, monkeypatch, error):
    """Networks that allow the site and not its storage: no traceback from deep inside."""
    import datasets

    def refuse(*arguments, **options):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    line = " ".join(str(error).split())
    with pytest.raises(HubUnreachable, match=f"{type(error).__name__}: {line}"):
        load_pairs(Source.find("me/photos"), "train", SIZE)
    assert not list(cache.glob("*"))


def test_a_cached_data_set_needs_no_hub(hub_of, monkeypatch):
    write_shard(hub_of / "train.parquet", range(3))
    write_shard(hub_of / "valid.parquet", [7])
    source = Source.find("me/photos")
    load_pairs(source, "train", SIZE)
    monkeypatch.undo()
    monkeypatch.setenv("MINICLIP_CACHE", str(hub_of.parent / "cache"))
    check_pairs(load_pairs(source, "train", SIZE), range(3))


# ------------------------------------------------------------------------------- real photographs


def test_real_flickr8k(real_data):
    source = Source.find(str(real_data))
    for split, expected in (("train", 6000), ("validation", 1000)):
        shards = sorted(real_data.glob(f"{split}*.parquet"))
        if sum(pq.ParquetFile(path).metadata.num_rows for path in shards) != expected:
            pytest.skip("MINICLIP_DATA names other photographs than Flickr8k")
        count = 0
        for _, image, captions in source.rows(split):
            assert image[:2] == b"\xff\xd8" and len(captions) == 5 and all(captions)
            count += 1
        assert count == expected
        pairs = load_pairs(source, split, 64, 200)
        assert len(pairs) == 200 and all(len(captions) == 5 for captions in pairs.captions)
        assert pairs.summary.startswith("200 images, 1,000 captions")
        assert 80 < pairs.images.mean() < 150 and pairs.images.std() > 40  # photographs, not noise
