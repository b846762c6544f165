"""What captions say about the images beside them: which are equal, and which name a side.

Two mistakes are silent and ruinous for people's own pairs. Equal captions make a right answer a
wrong one, in training (a false negative) and in recall. And mirroring turns "left" into a lie.
"""

import re

import numpy as np

# "left" and "right" as whole words, in the languages with the most speakers and readers. A word
# that also means something else ("right" as correct) only costs an image its mirrored copies.
SIDES = """
    left leftmost leftward leftwards right rightmost rightward rightwards
    clockwise anticlockwise counterclockwise
    links linke linken linker linkes linkem rechts rechte rechten rechter rechtes rechtem
    gauche droite izquierda izquierdo derecha derecho sinistra sinistro destra destro
    esquerda esquerdo direita direito stânga dreapta linksaf rechtsaf
    vänster höger venstre højre høyre vasen oikea vasemmalla oikealla
    lewo lewa lewy lewej prawo prawa prawy prawej vlevo vpravo levá pravá
    solda sağda soldaki sağdaki kiri kanan trái phải
    слева справа налево направо левый левая левое левой правый правая правое правой
    ліворуч праворуч αριστερά δεξιά ימין שמאל يسار يمين اليسار اليمين बाएं दाएं बाएँ दाएँ
""".split()
# These scripts put no spaces around words, or join endings to them.
WITHIN = ("左", "右", "왼쪽", "오른쪽", "ซ้าย", "ขวา")
NAMES_A_SIDE = re.compile(rf"\b(?:{'|'.join(SIDES)})\b|{'|'.join(WITHIN)}", re.IGNORECASE)


def names_a_side(captions: list[str]) -> bool:
    """Does one of an image's captions say left or right (or which way something turns)?"""
    return any(map(NAMES_A_SIDE.search, captions))


def sentence_numbers(texts: list[str]) -> np.ndarray:
    """M texts → (M,) int64: equal numbers for equal texts, counted from 0 in order of appearance.

    Case and spaces around words are ignored, as the tokenizer ignores them.
    """
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(" ".join(text.lower().split()), len(numbers))
                     for text in texts], np.int64)
