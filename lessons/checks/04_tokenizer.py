"""Checks of exercise 4."""

from collections import Counter
from copy import deepcopy
from itertools import pairwise

from miniclip.tokenizer import BYTE_SYMBOLS, learn_merges, merge, word_to_bytes

TEXTS = ("dog", "chó", "con chó trắng", "🐶 và 🐱", "naïve café", "犬", "")
CORPUS = {"the": 9, "there": 6, "left": 5, "of": 9, "circle": 4, "triangle": 3, "photo": 4,
          "bottom": 2, "yellow": 3, "cross": 2, "robot": 1, "a": 20}


def step(answer, words, new_id):
    """What merge_step gives, with its shape checked."""
    found = answer.merge_step(deepcopy(words), new_id)
    assert isinstance(found, tuple) and len(found) == 2, (
        f"merge_step should return two things, the pair and the words, not {found!r}")
    return found


def check_the_most_frequent_pair_wins(answer):
    """merge_step counts each pair as often as its word was seen, and takes the most frequent"""
    words = [([2, 0, 19], 5), ([2, 0, 17], 3), ([8, 4], 1), ([8, 4], 1), ([8, 4, 8, 4], 1)]
    pair, _ = step(answer, words, 512)
    assert tuple(pair) != (8, 4), (
        "(8, 4) occurs 4 times in the list, but (2, 0) was seen 8 times: count each pair as often "
        "as its word was seen")
    assert tuple(pair) == (2, 0), f"for {words} the pair should be (2, 0), seen 8 times, not {pair}"
    pair, _ = step(answer, [([8, 4, 8, 4], 3), ([2, 0], 5)], 512)
    assert tuple(pair) == (8, 4), (
        "[8, 4, 8, 4] was seen 3 times and has (8, 4) twice: that makes 6, more than the 5 of "
        f"(2, 0); chosen was {tuple(pair)}. Count every place, not every word")


def check_of_equals_the_smallest(answer):
    """of equally frequent pairs the smallest wins, whatever the order of the words"""
    words = [([9, 3], 4), ([1, 5], 4), ([1, 4], 4), ([7, 7], 2)]
    for order in (words, words[::-1], words[1:] + words[:1]):
        pair, _ = step(answer, order, 512)
        assert tuple(pair) == (1, 4), (
            "(9, 3), (1, 5) and (1, 4) were each seen 4 times: of equals the smallest wins, so it "
            f"should be (1, 4), not {tuple(pair)}. The order of the words must not matter")


def check_every_occurrence_is_glued(answer):
    """each occurrence of the pair becomes new_id, from left to right, and nothing else changes"""
    words = [([7, 7, 7], 3), ([7, 7, 1, 7, 7], 2), ([1, 2], 1), ([5], 4)]
    _, merged = step(answer, words, 600)
    found = [list(ids) for ids, _ in merged]
    assert found[0] != [600, 600], (
        "[7, 7, 7] became two merged symbols: after a merge go on behind *both* of its ids")
    assert found[1] != [600, 1, 7, 7], "only the first occurrence in a word was glued; go on"
    assert found == [[600, 7], [600, 1, 600], [1, 2], [5]], (
        f"with the pair (7, 7) and new_id 600, {[ids for ids, _ in words]} should become "
        f"[[600, 7], [600, 1, 600], [1, 2], [5]], not {found}")
    assert [seen for _, seen in merged] == [3, 2, 1, 4], "how often a word was seen must stay"


def check_the_words_given_stay(answer):
    """merge_step returns new lists and leaves those it was given alone"""
    words = [([2, 0, 19], 5), ([2, 0, 17], 3)]
    answer.merge_step(words, 512)
    assert words == [([2, 0, 19], 5), ([2, 0, 17], 3)], (
        "the words given were changed: build new lists, as the docstring asks")


def check_the_packages_merges(answer):
    """forty steps in a row learn the merges that the package learns"""
    words = [(word_to_bytes(word), seen) for word, seen in CORPUS.items()]
    symbols = [*BYTE_SYMBOLS]
    for number, expected in enumerate(learn_merges(CORPUS, 40)):
        before = words
        pair, words = step(answer, words, len(symbols))
        found = " ".join(symbols[i] for i in pair)
        counts = Counter()
        for ids, seen in before:
            for neighbours in pairwise(ids):
                counts[neighbours] += seen
        assert found == expected, (
            f"merge {number} should be {expected!r}, not {found!r}, which was seen "
            f"{counts[tuple(pair)]} times; the most frequent {max(counts.values())} times")
        assert [list(ids) for ids, _ in words] == [
            merge(ids, tuple(pair), len(symbols)) for ids, _ in before], (
            f"merge {number} is the right pair, {found!r}, but miniclip.tokenizer.merge should "
            "leave the same words")
        symbols.append(found.replace(" ", ""))


def check_bytes(answer):
    """to_bytes gives the UTF-8 bytes as numbers"""
    for text in TEXTS:
        found = answer.to_bytes(text)
        assert text.isascii() or list(found) != [ord(letter) for letter in text], (
            f"{list(found)} are the numbers of the characters of {text!r} (ord), not its bytes: "
            "UTF-8 writes ó in two bytes; text.encode gives them")
        assert list(found) == list(text.encode("utf-8")), (
            f"{text!r} should give {list(text.encode('utf-8'))}, not {list(found)}")


def check_round_trip(answer):
    """to_text gives every text back, wherever its bytes were cut"""
    for text in TEXTS:
        data = text.encode("utf-8")
        for size in (1, 2, 3, 100):
            pieces = [data[i:i + size] for i in range(0, len(data), size)]
            try:
                found = answer.to_text(pieces)
            except UnicodeDecodeError as error:
                raise AssertionError(
                    "a piece alone may be a third of a letter, which is no text: join all pieces "
                    "before you decode") from error
            assert "\ufffd" not in found, (
                f"{text!r} cut into pieces of {size} comes back with �, the sign for broken "
                "letters: join all pieces before you decode")
            assert found == text, f"{pieces} should give {text!r}, not {found!r}"


def glue(words, best, new_id):
    return best, [(merge(ids, best, new_id), seen) for ids, seen in words]


def without_how_often(words, new_id):
    counts = Counter(pair for ids, _ in words for pair in pairwise(ids))
    return glue(words, min(counts, key=lambda pair: (-counts[pair], pair)), new_id)


def once_per_word(words, new_id):
    counts = Counter()
    for ids, seen in words:
        for pair in set(pairwise(ids)):
            counts[pair] += seen
    return glue(words, min(counts, key=lambda pair: (-counts[pair], pair)), new_id)


def count(words):
    counts = Counter()
    for ids, seen in words:
        for pair in pairwise(ids):
            counts[pair] += seen
    return counts


def first_of_equals(words, new_id):
    counts = count(words)
    return glue(words, max(counts, key=counts.get), new_id)


def overlapping(words, new_id):
    counts = count(words)
    best = min(counts, key=lambda pair: (-counts[pair], pair))
    merged = []
    for ids, seen in words:
        out = [new_id if pair == best else pair[0] for pair in pairwise(ids)]
        merged.append((out + ids[-1:] if tuple(ids[-2:]) != best else out, seen))
    return best, merged


WRONG = {
    "words counted once each": ({"merge_step": without_how_often}, "as often as its word"),
    "each pair once per word": ({"merge_step": once_per_word}, "Count every place"),
    "the first of equals": ({"merge_step": first_of_equals}, "of equals the smallest"),
    "overlapping merges": ({"merge_step": overlapping}, "behind *both*"),
    "numbers of characters": ({"to_bytes": lambda text: [ord(c) for c in text]}, "not its bytes"),
    "each piece decoded alone": (
        {"to_text": lambda pieces: "".join(p.decode("utf-8", "replace") for p in pieces)},
        "join all pieces"),
}
