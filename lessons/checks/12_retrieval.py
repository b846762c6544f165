"""Checks of exercise 12."""

import math

import numpy as np

S = np.array([[0.9, 0.2, 0.5, 0.1, 0.0, 0.3],
              [0.1, 0.4, 0.3, 0.6, 0.2, 0.7],
              [0.8, 0.1, 0.2, 0.7, 0.6, 0.5]])
OWNER = np.array([0, 0, 1, 1, 2, 2])


def brute(S, owner):
    """Both ranks, one query and one rival at a time."""
    S, owner = S.tolist(), owner.tolist()
    forth = [1 + sum(S[i][j] >= max(S[i][m] for m in range(len(owner)) if owner[m] == i)
                     for j in range(len(owner)) if owner[j] != i) for i in range(len(S))]
    back = [1 + sum(S[i][j] >= S[owner[j]][j] for i in range(len(S)) if i != owner[j])
            for j in range(len(owner))]
    return forth, back


def ask(answer, name, S, owner):
    found = getattr(answer, name)(S.copy(), owner.copy())
    found = np.asarray(found)
    right = brute(S, owner)[name == "text_ranks"]
    assert found.shape == (len(right),), (
        f"{name} should give {len(right)} ranks, one for each "
        f"{'sentence' if name == 'text_ranks' else 'image'}; its shape is {found.shape}")
    return found.tolist(), right


def check_images(answer):
    """image_ranks: the best of the image's own sentences, among all"""
    found, right = ask(answer, "image_ranks", S, OWNER)
    assert found != [r - 1 for r in right], "the top is rank 1, not 0"
    assert found[0] == 1, (
        f"image 0 has 0.9 with its sentence 0, the best of all: rank 1, not {found[0]}. "
        "One of its own sentences is enough")
    assert found[1] == 2, (
        f"image 1 scores 0.3 with its first sentence and 0.6 with its second: the best of its own "
        f"counts, and only 0.7 stands before that. Rank 2, not {found[1]}")
    assert found == right, f"for the matrix of the chapter it should be {right}, not {found}"


def check_own_sentences(answer):
    """image_ranks: own sentences do not stand in each other's way"""
    scores = np.array([[0.9, 0.9, 0.9, 0.1], [0.1, 0.2, 0.1, 0.8]])
    found, right = ask(answer, "image_ranks", scores, np.array([0, 0, 0, 1]))
    assert found == right, (
        f"image 0 scores 0.9 with each of its own three sentences and 0.1 with a wrong one: rank "
        f"{right[0]}, not {found[0]}. Count only *wrong* sentences")


def check_texts(answer):
    """text_ranks: the sentence's own image, among all images"""
    found, right = ask(answer, "text_ranks", S, OWNER)
    assert found != [r - 1 for r in right], "the top is rank 1, not 0"
    assert found == right, (
        f"for the matrix of the chapter it should be {right}, not {found}: column j is compared "
        "with its entry in row owner[j]")


def check_ties(answer):
    """a tie counts against the model, in both directions"""
    scores, owner = np.full((4, 8), 0.5), np.repeat(np.arange(4), 2)
    for name in ("image_ranks", "text_ranks"):
        found, right = ask(answer, name, scores, owner)
        assert found == right, (
            f"a model that says 0.5 of everything has found nothing: {name} should be {right}, "
            f"not {found}. A wrong answer with the same score (>=) stands before the right one; "
            "argsort leaves a tie to the order in the list")


def check_brute_force(answer):
    """both agree with brute force on random scores, ties and uneven captions included"""
    for seed in range(40):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(1, 5))
        owner = rng.permutation(np.concatenate([np.arange(n), rng.integers(n, size=2 * n)]))
        scores = rng.integers(-2, 3, size=(n, len(owner))) / 4  # quarters: exact, and often equal
        for name in ("image_ranks", "text_ranks"):
            found, right = ask(answer, name, scores, owner)
            assert found == right, (
                f"{name} gives {found}, not {right}, for owner = {owner.tolist()} and S =\n"
                f"{scores}\nDo you count on a fixed number of sentences per image, or on scores "
                "above 0?")


def check_recall(answer):
    """recall_at: the share of ranks up to and including k, in percent"""
    ranks = np.array([1, 1, 2, 5, 5, 6, 10, 11])
    for k, right in ((1, 25), (5, 62.5), (10, 87.5), (11, 100)):
        found = answer.recall_at(ranks, k)
        assert not math.isclose(found, right / 100), (
            f"{found} is a share; in percent it is {right}")
        assert not math.isclose(found, 100 * (ranks < k).mean()), (
            f"rank {k} is among the first {k}: it counts for R@{k} (<=, not <)")
        assert math.isclose(found, right), f"R@{k} of {ranks} is {right}, not {found}"


def own_of(S, owner):
    return owner == np.arange(len(S))[:, None]


def strictly(S, owner):
    own = own_of(S, owner)
    best = np.where(own, S, -np.inf).max(1, keepdims=True)
    return 1 + ((S > best) & ~own).sum(1)


def all_compared(S, owner):
    best = np.where(own_of(S, owner), S, -np.inf).max(1, keepdims=True)
    return (S >= best).sum(1)


def only_the_first(S, owner):
    first = np.argmax(own_of(S, owner), axis=1)
    right = S[np.arange(len(S)), first][:, None]
    return 1 + ((S >= right) & ~own_of(S, owner)).sum(1)


def zero_for_the_rest(S, owner):
    own = own_of(S, owner)
    return 1 + ((S >= (S * own).max(1, keepdims=True)) & ~own).sum(1)


def sorted_places(S, owner):
    order = np.argsort(-S, axis=0, kind="stable")
    return 1 + np.argmax(order == owner, axis=0)


WRONG = {
    "ties for the model": ({"image_ranks": strictly}, "has found nothing"),
    "ties left to argsort": ({"text_ranks": sorted_places}, "argsort leaves a tie"),
    "own sentences count as rivals": ({"image_ranks": all_compared}, "Count only *wrong*"),
    "only the first sentence": ({"image_ranks": only_the_first}, "the best of its own"),
    "masked with 0 for −∞": ({"image_ranks": zero_for_the_rest}, "scores above 0"),
    "less than k": ({"recall_at": lambda ranks, k: 100 * (ranks < k).mean()}, "<=, not <"),
    "a share, not percent": ({"recall_at": lambda ranks, k: (ranks <= k).mean()}, "in percent"),
}
