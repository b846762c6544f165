"""Files of captions as people have them → rows (image's name, captions, split or "").

    CSV with any delimiter, JSON lines, JSON (a list, {name: captions}, COCO's, Karpathy's), and
    Flickr8k's token list

Which column is which is `columns.choose`'s affair. UTF-8, UTF-16 with its mark, or else Windows'
code page 1252, which is said.
"""

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

from miniclip.data.columns import choose, image_of, texts_of
from miniclip.data.images import IMAGE_SUFFIXES
from miniclip.data.splits import split_in, standard
from miniclip.notices import notice

Row = tuple[str, list[str], str]
SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".json", ".token")
TOKEN_LINE = re.compile(r"(.+?)#\d+\t(.*)")  # name.jpg#0<TAB>A child in a pink dress …
NAME_FIRST = re.compile(  # 0.jpg<TAB>A dog, a cat
    rf'\s*"?[^,\t;|"]+(?:{"|".join(map(re.escape, sorted(IMAGE_SUFFIXES)))})"?\s*?([,\t;|])', re.I)
FORM = "image,caption (quote a caption that has a comma)"


def read_caption_file(file: Path, image_key: str = "", caption_key: str = "") -> list[Row]:
    """Every row of a file, in its order. ValueError, in one line, says what is wrong with it."""
    text = read_any_text(file)
    if file.suffix.lower() == ".json":
        rows = json_rows(parsed(text, file), file, image_key, caption_key)
    elif file.suffix.lower() in (".jsonl", ".ndjson"):
        # Not splitlines: JSON's texts may hold U+2028 and U+0085, which it takes for line ends.
        lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
        rows = table_rows([parsed(line, f"{file}, line {n}") for n, line in lines], file, image_key,
                          caption_key)
    elif TOKEN_LINE.match(text) or "token" in file.name:
        rows = token_rows(text, file)
    else:
        rows = csv_rows(text, file, image_key, caption_key)
    rows = list(rows)
    if not rows:
        raise ValueError(f"{file} holds no captions; expected rows of the form "
                         + ("name.jpg#0<tab>caption" if "token" in file.name else FORM))
    return rows


def read_any_text(file: Path) -> str:
    """UTF-8 with or without a byte-order mark, UTF-16 with one, or else Windows-1252."""
    content = file.read_bytes()
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        where = f"{file} is not UTF-8 text: {error}"
    try:
        text = content.decode("cp1252")
    except UnicodeDecodeError:
        raise ValueError(where) from None
    notice(f"{where}; it is read as Windows-1252")
    return text


def parsed(text: str, where):
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is no JSON: {error}") from None


# ------------------------------------------------------------------------------- CSV


def csv_rows(text: str, file: Path, image_key: str, caption_key: str) -> Iterator[Row]:
    """Columns with commas, tabs, semicolons or bars between them, with a header.

    A file of two columns whose first line begins with an image's name needs no header.
    """
    delimiter = delimiter_of(text)
    quotings = (csv.QUOTE_MINIMAL, csv.QUOTE_NONE) if delimiter in "\t|" else (csv.QUOTE_MINIMAL,)
    for quoting in quotings:  # between tabs or bars a quote is often part of the text: "Stop" sign
        try:
            table = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting,
                               skipinitialspace=True, strict=True)
            rows = [(table.line_num, row) for row in table if row]
            break
        except csv.Error as error:  # a quote never closed swallows all that follows
            told = ValueError(f"{file}, line {table.line_num}: {error}; an open quote?")
    else:
        raise told
    if not rows:
        raise ValueError(f"{file} must begin with a header such as image,caption; found: an empty "
                         "file")
    header = [name.strip() for name in rows[0][1]]
    twice = [name for name in header if name and header.count(name) > 1]
    if twice:
        raise ValueError(f"{file} has {header.count(twice[0])} columns named {twice[0]!r}; number "
                         "them: caption_0, caption_1")
    if len(header) == 2 and Path(header[0]).suffix.lower() in IMAGE_SUFFIXES:
        header = ["image", "caption"]
    else:
        rows = rows[1:]
    wrong = [(number, row) for number, row in rows if len(row) != len(header)]
    if wrong:
        number, row = wrong[0]
        told = f"{file}, line {number}: expected {delimiter.join(header)}"
        told += " (quote a caption that has a comma)" if delimiter == "," else ""
        told += f"; found: {delimiter.join(row)[:80]}"
        if 1000 * len(wrong) > len(rows):  # Flickr30k's own table has one such row of 158,915
            raise ValueError(told)
        notice(f"{told}; left out, as {len(wrong)} of {len(rows):,} rows are")
    yield from table_rows([dict(zip(header, row)) for _, row in rows if len(row) == len(header)],
                          file, image_key, caption_key, header)


def delimiter_of(text: str) -> str:
    """The one that the first line has most of; of equals, and in doubt, the comma."""
    first = next((line for line in io.StringIO(text) if line.strip()), "")
    if named := NAME_FIRST.match(first):  # no header: the captions' own commas don't count
        return named[1]
    return max(",\t;|", key=lambda mark: (first.count(mark), mark == ","))


# ------------------------------------------------------------------------------- rows and JSON


def table_rows(rows: list[dict], file: Path, image_key: str, caption_key: str,
               header: list[str] | None = None) -> Iterator[Row]:
    """Rows as dictionaries, all alike → rows of names, captions and splits."""
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{file}: every row must be an object such as {{\"image\": \"0.jpg\", "
                         f"\"caption\": \"a dog\"}}; found: {str(rows[0])[:80]}")
    if not rows:
        return
    names = header or list(dict.fromkeys(name for row in rows for name in row))
    columns = choose(names, str(file), image_key, caption_key)
    for number, row in enumerate(rows, 1):
        where = f"{file}, row {number}"
        name, image = image_of(row.get(columns.image), where)
        if image is not None and not isinstance(image, str):
            raise ValueError(f"{where}: the image must be a file's name; found: {str(image)[:80]}")
        captions = [text for key in columns.captions for text in texts_of(row.get(key), where)]
        yield name.strip(), captions, standard(str(row.get(columns.split) or "").strip())


def json_rows(data, file: Path, image_key: str, caption_key: str) -> Iterator[Row]:
    """A list of rows, {name: captions}, or the form of COCO's or Karpathy's files."""
    if isinstance(data, list):
        return table_rows(data, file, image_key, caption_key)
    if isinstance(data, dict) and isinstance(data.get("images"), list):
        if isinstance(data.get("annotations"), list):
            return coco_rows(data, file)
        return karpathy_rows(data, file)
    if isinstance(data, dict) and isinstance(data.get("data"), list):
        return table_rows(data["data"], file, image_key, caption_key)
    if isinstance(data, dict) and data and all(
            split_in(name) and isinstance(rows, list) and rows and isinstance(rows[0], dict)
            for name, rows in data.items()):  # {"train": [rows], "val": [rows]}
        return ((name, captions, split or split_in(key)) for key, rows in data.items()
                for name, captions, split in table_rows(rows, file, image_key, caption_key))
    if isinstance(data, dict):
        return ((name, texts_of(captions, f"{file}, {name}"), "")
                for name, captions in data.items())
    raise ValueError(f"{file} must hold a list of rows or {{name: captions}}; found: "
                     f"{str(data)[:80]}")


def coco_rows(data: dict, file: Path) -> Iterator[Row]:
    """COCO's captions: images with an id and a name, annotations that name the image's id."""
    try:
        captions: dict = {image["id"]: [] for image in data["images"]}
        for annotation in data["annotations"]:
            if annotation["image_id"] in captions:
                captions[annotation["image_id"]] += texts_of(
                    annotation["caption"], f"{file}, image {annotation['image_id']}")
        return iter([(str(image["file_name"]), captions[image["id"]], "")
                     for image in data["images"]])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file}: COCO's captions need images with id and file_name, annotations "
                         f"with image_id and caption; missing: {error}") from None


def karpathy_rows(data: dict, file: Path) -> Iterator[Row]:
    """Karpathy's splits of Flickr8k, Flickr30k and COCO: sentences with `raw`, and a split."""
    try:
        return iter([
            (str(Path(image.get("filepath", "")) / image["filename"]),
             texts_of(image["sentences"], f"{file}, {image['filename']}"),
             standard(image.get("split", "")))
            for image in data["images"]])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: images need filename and sentences with raw; missing: {error}"
                         ) from None


def token_rows(text: str, file: Path) -> Iterator[Row]:
    """Flickr8k's and Flickr30k's token lists."""
    for number, line in enumerate(filter(str.strip, text.splitlines()), 1):
        found = TOKEN_LINE.fullmatch(line)
        if not found:
            raise ValueError(f"{file}, row {number}: expected name.jpg#0<tab>caption; found: "
                             f"{line[:80]}")
        yield found[1].strip(), [found[2]], ""
