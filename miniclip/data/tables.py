"""Parquet, the Hub's sets, and what `datasets` saved to a disk, read by `datasets`, row by row."""

import glob
from collections.abc import Iterator
from itertools import chain, groupby
from pathlib import Path

from miniclip.data.columns import Columns, choose, image_of, texts_of
from miniclip.data.folders import ImageFiles
from miniclip.data.hub import telling
from miniclip.data.splits import in_held_out_tenth, split_in, standard, unknown_split


def table_rows(source, split: str) -> Iterator[tuple[str, object, list[str]]]:
    """(name, image, captions) of a split of a Source of kind hub, parquet or saved, streamed: only
    what is read is fetched. Errors are told in one line."""
    with telling(source.where, split, source.kind == "hub"):
        tables = opened(source)
        named: dict[str, list] = {}  # of one name several: "train" and "restval"
        for name, table in tables.items():
            named.setdefault(standard(name), []).append(table)
        first = named.get(split, named.get("train", list(tables.values())))[0]
        names = list(first.column_names or next(iter(first), {}))  # a streamed CSV has none
        columns = choose(names, source.where, source.image_key, source.caption_key)
        if columns.split and len(named) == 1:  # else the tables' own names say it
            rows = by_column(tables, columns, split, source.where)
        elif split in named:
            rows = chain.from_iterable(named[split])
            if split == "train" and "validation" not in named:
                rows = parted(rows, columns, False, source.where)
        elif split == "validation" and "train" in named:
            rows = parted(chain.from_iterable(named["train"]), columns, True, source.where)
        else:
            raise unknown_split(split, source.where, {*tables, *(
                ("validation",) if "train" in named else ())})
        yield from read_rows(rows, columns, source)


def opened(source) -> dict:
    """{split's name: table}; images are left undecoded, so that one broken image is not fatal."""
    import datasets  # imported here because it takes a second

    if source.kind == "saved":
        found = datasets.load_from_disk(source.where)
        found = found if isinstance(found, dict) else {"train": found}
        # As streams: Dataset.cast would write a copy of everything into this very folder.
        tables = {name: table.to_iterable_dataset() for name, table in found.items()}
    elif source.kind == "hub":
        repository, _, configuration = source.where.partition(":")
        tables = dict(datasets.load_dataset(repository, configuration or None, streaming=True))
    else:
        tables = dict(datasets.load_dataset("parquet", data_files=shards(Path(source.where)),
                                            streaming=True))
    for name, table in tables.items():
        if table.features and undecoded(table.features) != dict(table.features):
            tables[name] = table.cast(datasets.Features(undecoded(table.features)))
    return tables


def parquet_files(root: Path) -> list[Path]:
    """In the folder itself, or in `data/`, where a copy of a Hub set has them; or this one file."""
    if root.is_file():
        return [root]
    for pattern in ("*.parquet", "data/*.parquet", "*/*.parquet"):  # the last: train/0000.parquet
        found = sorted(p for p in root.glob(pattern) if not p.name.startswith("."))
        if pattern != "*/*.parquet" or all(split_in(p.parent.name) for p in found):
            if found:
                return found
    return []


def shards(root: Path) -> dict[str, list[str]]:
    """{split: files}: by their names; where no name says a split, all are `train`."""
    found: dict[str, list[str]] = {}
    for path in parquet_files(root):
        found.setdefault(split_in(path.stem) or split_in(path.parent.name) or "", []).append(
            glob.escape(str(path)))  # `datasets` takes names for patterns
    unnamed = found.pop("", [])
    return found or {"train": unnamed}


def undecoded(features):
    """The same features, with every Image as it lies in the file."""
    import datasets

    if isinstance(features, datasets.Image):
        return datasets.Image(decode=False)
    if isinstance(features, dict):
        return {name: undecoded(feature) for name, feature in features.items()}
    if isinstance(features, datasets.List):
        return datasets.List(undecoded(features.feature), length=features.length)
    return features


def by_column(tables: dict, columns: Columns, split: str, where: str) -> Iterator[dict]:
    """Rows whose own column names their split, as Flickr30k's on the Hub do."""
    seen: set[str] = set()
    for table in tables.values():
        for row in table:
            name = standard(str(row[columns.split] or "").strip())
            seen.add(name)
            if name == split:
                yield row
    if split not in seen:
        if seen <= {"", "train"}:
            raise ValueError(f"{where}: its column {columns.split!r} names no {split}, only "
                             f"{' and '.join(sorted(map(repr, seen)))}; without that column "
                             "a tenth would be held out")
        raise unknown_split(split, where, seen)


def parted(rows: Iterator[dict], columns: Columns, held_out: bool, where: str) -> Iterator[dict]:
    """The tenth that is held out of a set without a validation split, or the rest.

    Neither is empty, if there are two images: the first is for training, the second held out.
    """
    seen: list[bytes] = []
    for number, row in enumerate(rows):
        content = content_of(row[columns.image], f"{where}, row {number}")
        if len(seen) < 2 and content not in seen:
            seen.append(content)
        known = seen.index(content) == 1 if content in seen else in_held_out_tenth(content)
        if known == held_out:
            yield row


def content_of(cell, where: str) -> bytes:
    """What tells one image from another, be it a path, bytes or an array; b"" for none."""
    _, image = image_of(cell, where)
    if image is None or isinstance(image, bytes):
        return image or b""
    return image.encode("utf-8", "surrogatepass") if isinstance(image, str) else image.tobytes()


def read_rows(rows: Iterator[dict], columns: Columns, source) -> Iterator[tuple]:
    """Rows as `datasets` gives them → (name, image, captions).

    Rows that follow each other with the same image, one for each caption, become one.
    """
    root = Path(source.where)
    files = None if source.kind == "hub" else ImageFiles(root.parent if root.is_file() else root)

    def content(numbered):
        number, row = numbered
        return content_of(row[columns.image], f"{source.where}, row {number}") or number

    for _, same in groupby(enumerate(rows), content):
        captions: list[str] = []
        for number, row in same:
            where = f"{source.where}, row {number}"
            name, image = image_of(row[columns.image], where)
            captions += [text for key in columns.captions for text in texts_of(row[key], where)]
        if isinstance(image, str):
            if image.startswith(("http:", "https:")):
                raise ValueError(f"{where}: images must lie in the table or on this disk; found "
                                 f"the address {image[:60]}: `img2dataset` fetches such images")
            image = files.find(image) if files else None
        yield name or f"row {number}", image, captions
