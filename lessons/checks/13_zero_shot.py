"""Checks of exercise 13."""

import numpy as np

LOUD = np.array([[100.0, 0.0], [0.0, 1.0]])  # two prompts, one with a very long vector
AGREE = np.array([[1.0, 0.1, 0.0], [1.0, -0.1, 0.0]])  # prompts of one class, much the same
SCATTER = np.array([[0.0, 1.0, 1.0], [0.0, 1.0, -1.0]])  # prompts of another, at a right angle


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def check_class_vector_is_a_unit_vector(answer):
    """class_vector gives one vector (D,) of length 1"""
    for prompts in (SCATTER, np.random.default_rng(0).normal(size=(7, 16))):
        found = answer.class_vector(prompts)
        found = np.asarray(found)
        assert found.shape == prompts.shape[1:], (
            f"prompts {prompts.shape} should give {prompts.shape[1:]}, not {found.shape}: "
            "the mean goes over the prompts, axis=0")
        assert np.isclose(np.linalg.norm(found), 1), (
            f"its length is {np.linalg.norm(found):.3f}, not 1: a mean of unit vectors that "
            "do not agree is shorter, so normalise once more after the mean")


def check_every_prompt_has_one_vote(answer):
    """a prompt with a long vector has no louder voice"""
    found = np.asarray(answer.class_vector(LOUD))
    assert abs(found[0]) < 0.99, (
        "the prompt of length 100 has drowned the other: normalise each before the mean")
    assert np.allclose(found, np.sqrt(0.5)), (
        f"one prompt along each axis should give [0.71, 0.71], halfway, not {found.round(2)}; "
        "divide every prompt by its own length (axis=1)")
    rng = np.random.default_rng(1)
    prompts, lengths = rng.normal(size=(5, 8)), rng.uniform(0.1, 50, size=(5, 1))
    assert np.allclose(answer.class_vector(prompts), answer.class_vector(lengths * prompts)), (
        "the same directions with other lengths should give the same class: normalise each "
        "prompt before the mean")


def check_one_template(answer):
    """with a single prompt, the class is that prompt, at length 1"""
    assert np.allclose(answer.class_vector(np.array([[3.0, 4.0]])), [0.6, 0.8]), (
        "(3, 4) alone should give (0.6, 0.8)")


def check_classify(answer):
    """classify names the class with the smallest angle"""
    rng = np.random.default_rng(2)
    centres = unit(rng.normal(size=(5, 32)))
    classes = [unit(c + 0.05 * rng.normal(size=(k, 32))) * rng.uniform(1, 9, size=(k, 1))
               for c, k in zip(centres, (1, 3, 8, 2, 5))]
    truth = rng.integers(5, size=40)
    images = centres[truth] + 0.05 * rng.normal(size=(40, 32))
    found = answer.classify(images, classes)
    found = np.asarray(found)
    assert found.shape == (40,), (
        f"40 images should give 40 class numbers, not shape {found.shape}: the largest along "
        "the classes, axis=1 of (N, C)")
    assert np.issubdtype(found.dtype, np.integer), "class numbers are integers: argmax, not max"
    assert (found == truth).all(), (
        f"{(found != truth).sum()} of 40 images near their class got another: it should be the "
        "class whose vector has the *largest* dot product with the image")
    scaled = answer.classify(images * rng.uniform(0.1, 10, size=(40, 1)), classes)
    assert (np.asarray(scaled) == truth).all(), "an image's length should change nothing"


def check_scattered_prompts_lose_nothing(answer):
    """a class whose prompts scatter isn't punished for it"""
    image = np.array([[0.65, 0.76, 0.0]])  # 49° from the first class, 41° from the second
    found = np.asarray(answer.classify(image, [AGREE, SCATTER])).tolist()
    assert found == [1], (
        "the image is nearer to class 1 by angle, whose prompts do not agree: without the "
        "second normalisation its mean is too short to win, so use class_vector for each class")


def loud(prompts):
    mean = prompts.mean(axis=0)
    return mean / np.linalg.norm(mean)


def short(prompts):
    return unit(prompts).mean(axis=0)


def mean_over_the_dimensions(prompts):
    return unit(unit(prompts).mean(axis=1))


def classify_without_the_second(images, classes):
    return (images @ np.stack([short(p) for p in classes]).T).argmax(axis=1)


def best_image_for_each_class(images, classes):
    return (images @ np.stack([unit(short(p)) for p in classes]).T).argmax(axis=0)


WRONG = {
    "no normalisation before the mean": ({"class_vector": loud}, "before the mean"),
    "no normalisation after the mean": ({"class_vector": short}, "after the mean"),
    "the mean over the wrong axis": ({"class_vector": mean_over_the_dimensions}, "axis=0"),
    "means of different lengths compared": (
        {"classify": classify_without_the_second}, "second normalisation"),
    "an image for each class": ({"classify": best_image_for_each_class}, "axis=1"),
}
