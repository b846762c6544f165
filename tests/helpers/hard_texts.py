"""Texts that are hard to tokenise as openai/CLIP does."""

CAPTIONS = [
    "A brown dog runs over the grass .",
    "Two dogs are playing in the snow , and one dog's ball is red !",
    "A child in a pink dress is climbing up a set of stairs .",
    "The man isn't standing on the 25 metre wall ; he's jumping .",
    "Một con chó trắng nằm cạnh con mèo nâu",
    "小狗在草地上跑",
    "café naïve über 🐶🐱",
]

# Pieces that hurt: what ftfy mends, HTML, contractions, digits, case, special tokens, odd spaces.
PIECES = r"""
    dog A Dog's 'S 'ſ it'll ' ''s don't 25% ٣ ½ x² _ < > </w> <w> Ġ Ā \ / ¡ … — � Straße ẞ İstanbul
    &amp; &amp;lt; &#39; &lt;b&gt; & &nbsp; &#x1c; ﬁ ＡＢＣ ‘quoted’ “text” â€œmoji schÃ¶n é ñ हिन्दी
    العربية 👩‍👩‍👧 🇻🇳 | || <|startoftext|> <|endoftext|> !<|endoftext|>x <start_of_text>
""".split()
PIECES += [*" \t\n\r\0\x0b\x0c\x1b\x1c\x7f\x85\xa0\u200b\u2028\u3000\ufeff\u212a"]
PIECES += ["\r\n", "\x1b[31m"]
HARD_TEXTS = [*PIECES, *CAPTIONS, "".join(PIECES), "x" * 300, "don't can't we'll i'd she've 1e-5"]
HARD_TEXTS += ["antidisestablishmentarianism", "https://example.org/a_b?c=d#e", "#tag @you $9.99"]
