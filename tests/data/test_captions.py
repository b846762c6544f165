"""What captions say: sides in many languages, and which texts are equal."""

import numpy as np
import pytest

from miniclip.data.captions import names_a_side, sentence_numbers


@pytest.mark.parametrize("caption", [
    "an arrow that points left", "The LEFT one", "a dog to the right of a cat", "turn it clockwise",
    "a left-handed guitar", "ein Pfeil nach links", "das rechte Auge", "une flèche à gauche",
    "une flèche à droite", "una flecha a la izquierda", "la freccia a sinistra", "seta à direita",
    "en pil åt vänster", "strzałka w lewo", "стрелка налево", "правый берег", "mũi tên bên trái",
    "mũi tên bên phải", "向左的箭头", "右を向いた矢印", "왼쪽 화살표", "panah ke kanan", "ลูกศรซ้าย",
    "سهم إلى اليسار", "sola değil sağdaki ok"])
def test_captions_that_name_a_side(caption):
    assert names_a_side(["a plain caption", caption])


@pytest.mark.parametrize("caption", [
    "a bright copyright sign", "an upright leftover", "a dog runs through the snow", "",
    "rechteckig", "an adroit player", "le chat noir", "a lefty", "linkspace"])
def test_captions_that_name_none(caption):
    assert not names_a_side([caption, "a plain caption"])


def test_sentence_numbers():
    texts = ["a dog", "A  dog ", "a cat", "a dog", "dog a"]
    assert sentence_numbers(texts).tolist() == [0, 0, 1, 0, 2]
    assert sentence_numbers([]).dtype == np.int64
