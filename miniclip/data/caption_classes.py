"""Classes read from captions: labelled photographs where there are only described ones.

The rule. Words for the same thing count as one ("puppy" is a dog). A caption names a class if it
has one of its words.

- A thing (dog, bicycle) is an image's class if three of five captions name it, and no other thing
  is named by so many.
- A person (man, woman, boy, girl) is, if three of five name it, and no caption names another person
  or a thing.
- Any other image has no class. People look at photographs differently, and where they disagree
  there is no right answer.
"""

import re

import numpy as np

from miniclip.data.pairs import Examples, Pairs, load_pairs
from miniclip.data.sources import Source
from miniclip.data.splits import UnknownSplit

THINGS = {"dog": "dog dogs puppy puppies",
          "bicycle": "bicycle bicycles bike bikes bicyclist bicyclists biker bikers cyclist "
                     "cyclists"}
PEOPLE = {"man": "man men", "woman": "woman women lady ladies", "boy": "boy boys",
          "girl": "girl girls"}
WORDS = {name: set(words.split()) for name, words in (THINGS | PEOPLE).items()}
NAMES = tuple(WORDS)
AGREE = 0.6  # share of the captions that must name a class: three of five


def class_of(captions: list[str]) -> str | None:
    """The captions of one image → its class, one of NAMES, or None.

    >>> class_of(["A puppy runs .", "Two dogs", "A dog and a man", "It runs .", "An animal"])
    'dog'
    >>> class_of(["A man", "A man", "A man and a boy"]) is None
    True
    """
    said = [set(re.findall(r"[a-z]+", caption.lower())) for caption in captions]
    named = {name: sum(bool(words & here) for here in said) for name, words in WORDS.items()}
    agreed = [name for name in NAMES if named[name] >= AGREE * len(captions)]
    things = [name for name in agreed if name in THINGS]
    if things:
        return things[0] if len(things) == 1 else None
    people = [name for name in PEOPLE if named[name]]
    thing_mentioned = any(named[name] for name in THINGS)
    if len(people) == 1 and people[0] in agreed and not thing_mentioned:
        return people[0]
    return None


def balanced_examples(pairs: Pairs, seed: int) -> Examples:
    """The images of a split that have a class; of each class as many as the rarest has.

    ValueError if a class has no image.
    """
    classes = [class_of(captions) for captions in pairs.captions]
    rows = [np.array([i for i, c in enumerate(classes) if c == name], np.int64) for name in NAMES]
    fewest = min(map(len, rows))
    if not fewest:
        missing = NAMES[[len(r) for r in rows].index(0)]
        raise ValueError(f"{pairs.name}: by its captions no image shows a {missing}; the classes "
                         f"are {', '.join(NAMES)}")
    rng = np.random.default_rng(seed)
    chosen = np.concatenate([rng.permutation(r)[:fewest] for r in rows])
    return Examples(np.asarray(pairs.images[np.sort(chosen)]),
                    [pairs.captions[i] for i in np.sort(chosen)],
                    np.array([NAMES.index(classes[i]) for i in np.sort(chosen)]), NAMES)


def asked_photographs(source: Source, size: int, seed: int,
                      split: str = "test") -> tuple[Examples, str]:
    """The images of a source to be asked about, as `balanced_examples`, and their split.

    That is `split`, or validation where the source has no such split.
    """
    try:
        pairs = load_pairs(source, split, size)
    except UnknownSplit:
        split, pairs = "validation", load_pairs(source, "validation", size)
    return balanced_examples(pairs, seed), split


def parted(examples: Examples, share: float, seed: int) -> tuple[Examples, Examples]:
    """Examples → without a share of them, and that share."""
    order = np.random.default_rng(seed).permutation(len(examples.labels))
    count = round(share * len(order))
    return part(examples, np.sort(order[count:])), part(examples, np.sort(order[:count]))


def part(examples: Examples, rows) -> Examples:
    """The examples with these numbers."""
    return Examples(examples.images[rows], [examples.captions[i] for i in rows],
                    examples.labels[rows], examples.names)
