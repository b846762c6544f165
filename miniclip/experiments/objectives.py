"""One image tower, four things to learn: which caption, which label, which words, which next word.

    pixels (B, 3, S, S) ─ the same VisionTransformer ─▶ (B, D) ─ Contrast:   the batch's own caption
                                                               ─ Labels:     one of C numbers
                                                               ─ BagOfWords: the caption's words
                                                               ─ WordByWord: the caption, in order

Each objective has a `loss` to train with, and `scores` of images against class names. All four
start from the same weights of the image tower, if they are given the same seed.
"""

import numpy as np
import torch
import torch.nn.functional as F
from miniclip_kernels import clip_loss
from torch import nn

from miniclip.config import ModelConfig
from miniclip.data.images import normalize
from miniclip.data.scenes import article
from miniclip.model import CLIP
from miniclip.tasks.features import embed_images
from miniclip.tasks.zero_shot import TEMPLATES, class_vectors
from miniclip.tokenizer import Tokenizer

TYPICAL = 250  # training images that tell how likely a text is anyway


class Contrast(nn.Module):
    """CLIP: the similarity matrix of a batch towards the identity (Radford et al. 2021, 2.3)."""

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer, seed: int, templates=TEMPLATES):
        super().__init__()
        self.clip = CLIP(config).init_weights(torch.Generator().manual_seed(seed))
        self.tokenizer, self.templates = tokenizer, templates

    @classmethod
    def of(cls, model: CLIP, tokenizer: Tokenizer, templates=TEMPLATES) -> "Contrast":
        """Around a model that is trained already."""
        self = cls.__new__(cls)
        nn.Module.__init__(self)
        self.clip, self.tokenizer, self.templates = model, tokenizer, templates
        return self

    def loss(self, pixels, tokens, labels):
        images, texts, scale = self.clip(pixels, tokens)  # (B, D) twice, ()
        with torch.autocast(pixels.device.type, enabled=False):  # in float32, as the others' losses
            return clip_loss(images.float(), texts.float(), scale)

    def scores(self, images: np.ndarray, names) -> torch.Tensor:
        """uint8 (N, S, S, 3), C names → cosines (N, C)."""
        vectors = class_vectors(self.clip, self.tokenizer, list(names), self.templates)
        return embed_images(self.clip, images) @ vectors.T

    def after_step(self):
        self.clip.clamp_scale_()


class OnTheTower(nn.Module):
    """What the other three share: the image tower, and predictions about many images."""

    def __init__(self, config: ModelConfig, seed: int):
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)
        self.vision = CLIP(config).init_weights(self.generator).vision

    def linear(self, width: int, outputs: int) -> nn.Linear:
        """A layer whose outputs have about the size of its inputs; its bias is 0."""
        layer = nn.Linear(width, outputs)
        nn.init.normal_(layer.weight, std=width ** -0.5, generator=self.generator)
        nn.init.zeros_(layer.bias)
        return layer

    @torch.no_grad()
    def seen(self, images: np.ndarray, batch_size: int = 250) -> torch.Tensor:
        """uint8 (N, S, S, 3) → the image tower's output (N, D), on its device."""
        device = self.vision.projection.device
        return torch.cat([self.vision(normalize(images[i:i + batch_size]).to(device)).float()
                          for i in range(0, len(images), batch_size)])

    def after_step(self):
        pass


class Labels(OnTheTower):
    """The supervised opponent: a linear layer over the labels of a list that was fixed before."""

    def __init__(self, config: ModelConfig, names, seed: int):
        super().__init__(config, seed)
        self.names = tuple(names)
        self.head = self.linear(config.embed_dim, len(self.names))

    def loss(self, pixels, tokens, labels):
        return F.cross_entropy(self.head(self.vision(pixels)).float(), labels)

    @torch.no_grad()
    def scores(self, images: np.ndarray, names) -> torch.Tensor:
        """uint8 (N, S, S, 3), C names → logits (N, C); a name that was no label gets −infinity."""
        logits = self.head(self.seen(images)).cpu()  # (N, labels)
        found = torch.full((len(images), len(names)), -torch.inf)
        for column, name in enumerate(names):
            if name in self.names:
                found[:, column] = logits[:, self.names.index(name)]
        return found


class FromText(OnTheTower):
    """What the two that predict the caption share: names are scored by how likely their text is."""

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer, seed: int, typical: np.ndarray):
        super().__init__(config, seed)
        self.tokenizer, self.typical = tokenizer, typical[:TYPICAL]

    def log_likely(self, vectors, names) -> torch.Tensor:
        """Image vectors (N, D), C names → log P(text | image), (N, C)."""
        raise NotImplementedError

    @torch.no_grad()
    def scores(self, images: np.ndarray, names) -> torch.Tensor:
        """uint8 (N, S, S, 3), C names → log P(text | image) / P(text), (N, C).

        P(text) is its mean over typical training images. Without it the commonest and shortest name
        would win for every image.
        """
        usual = self.log_likely(self.seen(self.typical), names)
        usual = usual.logsumexp(0) - np.log(len(usual))  # (C,)
        return (self.log_likely(self.seen(images), names) - usual).cpu()


class BagOfWords(FromText):
    """Which tokens does the caption have, in any order (Joulin et al. 2016, section 3)?"""

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer, seed: int, typical: np.ndarray):
        super().__init__(config, tokenizer, seed, typical)
        self.head = self.linear(config.embed_dim, config.vocab_size)

    def loss(self, pixels, tokens, labels):
        chances = self.head(self.vision(pixels)).float().log_softmax(dim=1)  # (B, V)
        words = inner(tokens)  # (B, L) bool
        return -(chances.gather(1, tokens) * words).sum(1).div(words.sum(1).clamp(min=1)).mean()

    def log_likely(self, vectors, names):
        """Of each name's own tokens."""
        chances = self.head(vectors).log_softmax(dim=1)  # (N, V)
        return torch.stack([chances[:, self.tokenizer.encode(name)].sum(1) for name in names], 1)


class WordByWord(FromText):
    """A language model that goes on from the image: the caption, token by token.

    The paper's first attempt (section 2.3, Figure 2; Desai and Johnson 2021, arXiv 2006.06666). The
    image's vector stands where the start token would be.
    """

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer, seed: int, typical: np.ndarray):
        super().__init__(config, tokenizer, seed, typical)
        text = CLIP(config).init_weights(self.generator).text
        self.tokens, self.positions = text.tokens, text.positions
        self.blocks, self.norm_final = text.blocks, text.norm_final
        self.from_image = self.linear(config.embed_dim, config.text_width)

    def log_chances(self, vectors, tokens):
        """Image vectors (B, D), tokens (B, L) → log P of each text, given its image: (B,)."""
        x = self.tokens(tokens[:, :-1])  # (B, L-1, C); the last token predicts nothing
        x = torch.cat([self.from_image(vectors)[:, None].to(x.dtype), x[:, 1:]], dim=1)
        x = self.norm_final(self.blocks(x + self.positions[:x.shape[1]]))
        logits = (x @ self.tokens.weight.T).float()  # (B, L-1, V), of the token that follows
        chances = -F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
        return (chances * (inner(tokens) | ended(tokens))[:, 1:]).sum(1)

    def loss(self, pixels, tokens, labels):
        count = (inner(tokens) | ended(tokens)).sum()
        return -self.log_chances(self.vision(pixels), tokens).sum() / count

    def log_likely(self, vectors, names):
        """Of a sentence with the name: "a photo of an orange star"."""
        columns = []
        for name in names:
            tokens = self.tokenizer([f"a photo of {article(name)}"]).to(vectors.device)
            tokens = tokens[:, : int(tokens.argmax()) + 1].expand(len(vectors), -1)
            columns.append(self.log_chances(vectors, tokens))
        return torch.stack(columns, dim=1)


def inner(tokens: torch.Tensor) -> torch.Tensor:
    """(B, L) → whether a token lies between start and end: (B, L) bool."""
    place = torch.arange(tokens.shape[1], device=tokens.device)
    return (place > 0) & (place < tokens.argmax(1, keepdim=True))


def ended(tokens: torch.Tensor) -> torch.Tensor:
    """(B, L) → whether a token is the end of its text: (B, L) bool."""
    place = torch.arange(tokens.shape[1], device=tokens.device)
    return place == tokens.argmax(1, keepdim=True)
