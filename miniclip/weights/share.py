"""A run → the Hub: its weights, its figures and pictures, and a card that says what they are."""

import json
import re
from dataclasses import asdict
from pathlib import Path

from miniclip.config import ModelConfig, TrainConfig, load_config
from miniclip.data.hub import HUB_ID
from miniclip.notices import one_line

SHARED = ("model.safetensors", "config.json", "tokenizer.json", "metrics.json", "metrics.jsonl",
          "*.png")
CARD = """---
license: {license}
library_name: miniclip
pipeline_tag: zero-shot-image-classification
tags: [clip, miniclip]
---

# {name}

A CLIP of {parameters:,} parameters, trained with miniclip {origin}on {data} ({summary}).

| {images:,} held-out images | R@1 | R@5 | R@10 | median rank |
| --- | --- | --- | --- | --- |
| image → text | {i2t} |
| text → image | {t2i} |

Recall in percent, of the validation split of the same data; chance at R@10 is {chance:.1f}. It was
trained for {steps:,} steps of {batch_size} pairs in {minutes:.1f} minutes on {device}.

```python
import miniclip

model, tokenizer, transform = miniclip.load("{repository}")
```

![Captions and the images that they find](retrieval.png)

![Loss and recall during training](curves.png)

What it has not seen, it does not know: it was trained on {data} only, and on its kind of images and
sentences. It may repeat what is unfair or wrong in them.
"""


def model_card(run: Path, repository: str, license: str) -> str:
    """README.md for the Hub, made of the run's own figures. ValueError for an unfinished run."""
    if not (run / "metrics.json").is_file():
        raise ValueError(f"{run} holds no metrics.json: only a run that has ended can be shared; "
                         f"miniclip train --run {run} --resume ends it")
    metrics = json.loads((run / "metrics.json").read_text())
    config = load_config(TrainConfig, run / "train.json")
    training = metrics["training"]

    def row(way: str) -> str:
        return " | ".join(f"{value:.1f}" for value in metrics[way].values())

    return CARD.format(
        license=license, name=repository.split("/")[1], repository=repository,
        parameters=training["parameters"], data=training["data"].split(":")[0],
        summary=training["summary"], images=metrics["images"], i2t=row("image_to_text"),
        origin=f"from {public_name(config.start_from)} " if config.start_from else "",
        t2i=row("text_to_image"), chance=min(100, 1000 / metrics["images"]),
        steps=training["steps"], batch_size=training["batch_size"],
        minutes=training["seconds"] / 60, device=training["device"])


def public_name(source: str) -> str:
    """A Hub id as it is; of a path on this machine only the last part."""
    is_id = re.fullmatch(HUB_ID, source) and not Path(source).exists()
    return source if is_id else Path(source).name


def push(run: str, repository: str, license: str, private: bool = False) -> str:
    """A run's folder → the address of its page on the Hub, where `miniclip.load` finds it.

    Args:
        run: a run that has ended.
        repository: "USER/NAME".
        license: such as "mit" or "cc-by-4.0": what others may do with the weights.
        private: whether only the user sees it.

    Raises:
        ValueError: not a run, not a name, not logged in, or refused by the Hub.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import LocalTokenNotFoundError

    folder = Path(run).expanduser()
    if not re.fullmatch(HUB_ID, repository):
        raise ValueError(f"{repository!r} is no name on the Hub; it must be USER/NAME")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license):
        raise ValueError(f"license {license!r} is none of the Hub's, such as mit, apache-2.0, "
                         "cc-by-4.0 or other")
    if not (folder / "train.json").is_file():
        raise ValueError(f"{run} is no run's folder")
    load_config(ModelConfig, folder / "config.json")
    config, api = load_config(TrainConfig, folder / "train.json"), HfApi()
    settings = asdict(config) | {  # no paths of this machine
        name: public_name(getattr(config, name)) for name in ("data", "start_from")}
    written = {"train.json": json.dumps(settings, indent=2) + "\n",
               "README.md": model_card(folder, repository, license)}
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        if private and not api.model_info(repository).private:
            raise ValueError("it is there already, and public; make it private there, or leave "
                             "out --private")
        api.upload_folder(repo_id=repository, folder_path=folder, allow_patterns=list(SHARED),
                          commit_message="A run of miniclip")
        for name, text in written.items():
            api.upload_file(repo_id=repository, path_in_repo=name, path_or_fileobj=text.encode(),
                            commit_message=f"Its {name}")
    except Exception as error:  # of any network library; the message gives the reason
        status = getattr(getattr(error, "response", None), "status_code", 0)
        denied = status in (401, 403) or isinstance(error, LocalTokenNotFoundError)
        advice = "; log in first: hf auth login" if denied else ""
        raise ValueError(f"the Hub did not take {repository}: {one_line(error)[:200]}{advice}"
                         ) from error
    return f"https://huggingface.co/{repository}"
