"""The tokenizer that belongs to weights: its merges beside them, or CLIP's own."""

import importlib.util
import json
import os
from pathlib import Path

from miniclip.config import ModelConfig
from miniclip.notices import notice, one_line
from miniclip.tokenizer import CLIP_MERGES, Tokenizer, read_text
from miniclip.weights.names import MERGES, TOKENIZER

CLIP_REPOSITORY = "openai/clip-vit-base-patch32"  # of the Hub, where CLIP's merges are


def find_tokenizer(folder: Path, config: ModelConfig) -> Tokenizer:
    """The merges beside the weights, those that MINICLIP_CLIP_MERGES names, or CLIP's own."""
    tokenizer = None
    if path := next((folder / name for name in MERGES if (folder / name).is_file()), None):
        tokenizer = read_merges(path, config)
    elif (path := folder / TOKENIZER).is_file():
        tokenizer = Tokenizer(merges_within(path))
    elif named := os.environ.get("MINICLIP_CLIP_MERGES"):
        path = Path(named)
        if not path.is_file():
            raise ValueError(f"MINICLIP_CLIP_MERGES names {named}, which is no file")
        tokenizer = read_merges(path, config)
    elif config.vocab_size == 514 + CLIP_MERGES:
        path = clips_merges()
        tokenizer = read_merges(path, config)
    if tokenizer is None:
        raise ValueError(f"the tokenizer of these {config.vocab_size:,} tokens is not beside the "
                         f"weights: put its {MERGES[0]} or {TOKENIZER} there, or name the merges "
                         "in MINICLIP_CLIP_MERGES")
    if tokenizer.vocab_size != config.vocab_size:
        raise ValueError(f"{path} holds {tokenizer.vocab_size - 514:,} merges, which make "
                         f"{tokenizer.vocab_size:,} tokens, but the weights have "
                         f"{config.vocab_size:,}; they are not of one model")
    tokenizer.context_length = config.context_length
    return tokenizer


def read_merges(path: Path, config: ModelConfig) -> Tokenizer:
    """merges.txt, or OpenAI's file, of which only the first 48,894 lines count."""
    if config.vocab_size == 514 + CLIP_MERGES:
        return Tokenizer.from_clip(path)
    return Tokenizer(line for line in read_text(path).splitlines()[1:] if line)


def merges_within(path: Path) -> list[str]:
    """The merges in a tokenizer.json of Hugging Face's: "t h", or ["t", "h"], each."""
    try:
        merges = json.loads(read_text(path))["model"]["merges"]
        return [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no merges of a BPE tokenizer: {error!r}") from error


def clips_merges() -> Path:
    """CLIP's merges: in an installed open_clip or CLIP, or on the Hub."""
    for package in ("open_clip", "clip"):
        found = importlib.util.find_spec(package)  # imports nothing
        path = Path(found.origin).parent / MERGES[1] if found and found.origin else Path()
        if path.is_file():
            return path
    from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache

    if isinstance(cached := try_to_load_from_cache(CLIP_REPOSITORY, MERGES[0]), str):
        return Path(cached)
    try:
        HfApi().model_info(CLIP_REPOSITORY, timeout=10)  # the download itself tries for a minute
        notice(f"fetching CLIP's merges, half a megabyte, from {CLIP_REPOSITORY}")
        return Path(hf_hub_download(CLIP_REPOSITORY, MERGES[0], etag_timeout=10))
    except Exception as error:  # of any network library
        raise ValueError(
            f"the tokenizer needs CLIP's merges: put {MERGES[0]}, as the Hub has it in "
            f"{CLIP_REPOSITORY}, beside it, or name it in MINICLIP_CLIP_MERGES (the Hub does not "
            f"answer: {one_line(error)[:100]})") from error
