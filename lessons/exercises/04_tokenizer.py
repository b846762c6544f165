"""Exercise 4: one step of BPE, and bytes. `make check N=04` tells at once what is right."""


def merge_step(words: list[tuple[list[int], int]], new_id: int):
    """One step of learning merges → (pair, words): the pair chosen, and all words after it.

    words: [(ids of one word, how often the word was seen), …], for example
        [([2, 0, 19], 5), ([2, 0, 17], 3)]: here the pair (2, 0) was seen 8 times.
    The pair that was seen most often wins; of equally frequent pairs, the smallest: (1, 9) comes
    before (2, 0). Then each of its occurrences becomes `new_id`, from left to right: with the pair
    (7, 7), the word [7, 7, 7] becomes [new_id, 7].
    The words given stay as they are: return new lists. Some word has at least two ids.
    """
    raise NotImplementedError


def to_bytes(text: str) -> list[int]:
    """The numbers, 0 to 255, of the bytes with which UTF-8 writes the text."""
    raise NotImplementedError


def to_text(pieces: list[bytes]) -> str:
    """The text whose UTF-8 bytes were cut into these pieces; a cut may go through a letter."""
    raise NotImplementedError
