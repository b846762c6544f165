"""CLIP: two towers, one space (Radford et al. 2021, arXiv 2103.00020, section 2.4).

    pixels (B, 3, H, W) ─ VisionTransformer ─▶ (B, D) ┐
                                                      ├─ both on the unit sphere ─▶ scale · I Tᵀ
    tokens (B, L) ─────── TextTransformer ───▶ (B, D) ┘

In the shapes below B is the batch, T a number of tokens, C the width of a tower, H its heads, and D
the width of the shared space.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from miniclip.config import ModelConfig

MAX_SCALE = 100.0  # section 2.5: beyond it training becomes unstable


class QuickGELU(nn.Module):
    """x · sigmoid(1.702 x): the approximation of GELU that OpenAI's weights were trained with."""

    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, arXiv 1706.03762, section 3.2).

    (B, T, C) → (B, T, C). With `causal`, token t sees only the tokens up to t.
    """

    def __init__(self, width: int, heads: int, *, causal: bool):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x):
        B, T, C = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.heads, C // self.heads)  # (B, T, 3, H, C/H)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, C/H)
        x = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)  # (B, H, T, C/H)
        return self.out(x.transpose(1, 2).reshape(B, T, C))  # heads side by side again


class Block(nn.Module):
    """One pre-norm Transformer block: attention mixes the tokens, then an MLP acts on each one."""

    def __init__(self, width: int, heads: int, *, causal: bool, quick_gelu: bool):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, causal=causal)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width),
            QuickGELU() if quick_gelu else nn.GELU(),
            nn.Linear(4 * width, width))

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    def value_path(self, x):
        """The block as if every token saw itself alone: its own value, mixed with no other's.

        MaskCLIP (Zhou et al. 2022, arXiv 2112.01071, section 3.3). (B, T, C) → (B, T, C).
        """
        x = x + self.attention.out(self.attention.qkv(self.norm1(x)).chunk(3, dim=-1)[2])
        return x + self.mlp(self.norm2(x))


class Blocks(nn.Sequential):
    """Blocks, one after another.

    With `recompute`, training keeps only what goes into each block. The backward pass computes the
    rest again: a third more time for a fraction of the memory (Chen et al. 2016, arXiv 1604.06174).
    """

    recompute = False

    def forward(self, x):
        for block in self:
            again = self.recompute and torch.is_grad_enabled()
            x = checkpoint(block, x, use_reentrant=False) if again else block(x)
        return x


class VisionTransformer(nn.Module):
    """Pixels (B, 3, S, S) → image embeddings (B, D) (Dosovitskiy et al. 2021, arXiv 2010.11929).

    A convolution with stride = kernel = patch cuts the image into tokens. Small models put a few
    3×3 convolutions before it: "early convolutions help transformers see better" (Xiao et al.
    2021, arXiv 2106.14881). They help most where images are few.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        width, channels = config.vision_width, (3, *config.stem)
        stem = []
        for c_in, c_out in zip(channels, channels[1:]):
            stem += [nn.Conv2d(c_in, c_out, 3, stride=2, padding=1), nn.GELU()]
        self.stem = nn.Sequential(*stem)
        patch = config.patch_size // config.stride  # in pixels of what the stem leaves
        self.patches = nn.Conv2d(channels[-1], width, patch, stride=patch, bias=False)
        self.class_token = nn.Parameter(torch.empty(width)) if config.pool == "cls" else None
        tokens = config.image_tokens + (config.pool == "cls")
        self.positions = nn.Parameter(torch.empty(tokens, width))
        self.norm_pre = nn.LayerNorm(width) if config.pre_norm else nn.Identity()
        self.blocks = Blocks(*[
            Block(width, config.vision_heads, causal=False, quick_gelu=config.quick_gelu)
            for _ in range(config.vision_layers)])
        self.norm_post = nn.LayerNorm(width)
        self.projection = nn.Parameter(torch.empty(width, config.embed_dim))

    def embed(self, pixels):
        """Pixels (B, 3, S, S) → what the first block gets: tokens (B, T, C)."""
        # In the weights' type, as half() leaves them; and in the order of faster convolutions.
        pixels = pixels.to(self.positions.dtype, memory_format=torch.channels_last)
        x = self.patches(self.stem(pixels))  # (B, C, S/P, S/P)
        x = x.flatten(2).transpose(1, 2)  # (B, T, C)
        if self.class_token is not None:
            first = self.class_token.to(x.dtype).expand(x.shape[0], 1, -1)  # not len(x), which
            x = torch.cat([first, x], dim=1)  # an export would turn into the example's number
        return self.norm_pre(x + self.positions)

    def features(self, pixels):
        """Pixels (B, 3, S, S) → (B, C), before the projection: what a linear probe is given."""
        x = self.blocks(self.embed(pixels))
        # OpenAI normalises only the class token. With mean pooling the mean takes its place.
        return self.norm_post(x[:, 0] if self.class_token is not None else x.mean(dim=1))

    def forward(self, pixels):
        return self.features(pixels) @ self.projection  # (B, D)

    def dense(self, pixels):
        """Pixels (B, 3, S, S) → one embedding for each patch: (B, S/P, S/P, D), not normalised.

        Training asks only for the embedding of the whole image. With mean pooling each token is a
        summand of it, and is projected as the mean would be. With a class token the others are
        never read, so that the last block uses them for what it likes; their values still say what
        lies there (`Block.value_path`).
        """
        x = self.embed(pixels)
        if self.class_token is None:
            x = self.blocks(x)
        else:
            for block in self.blocks[:-1]:
                x = block(x)
            x = self.blocks[-1].value_path(x)[:, 1:] if len(self.blocks) else x[:, 1:]
        x = self.norm_post(x) @ self.projection  # (B, T, D)
        side = math.isqrt(x.shape[1])
        return x.unflatten(1, (side, side))


class TextTransformer(nn.Module):
    """Token ids (B, L), any L up to the context length → text embeddings (B, D).

    Attention is causal, as in GPT (section 2.4). The embedding is read at the end-of-text token,
    the only one that has seen the whole sentence. It has the largest id, so `argmax` finds it.
    Tokens after it cannot change the result.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        width = config.text_width
        # Empty: init_weights or a file fills it. The random values of nn.Embedding itself would add
        # half a second to every command that loads a model.
        self.tokens = nn.Embedding.from_pretrained(
            torch.empty(config.vocab_size, width), freeze=False)
        self.positions = nn.Parameter(torch.empty(config.context_length, width))
        self.blocks = Blocks(*[
            Block(width, config.text_heads, causal=True, quick_gelu=config.quick_gelu)
            for _ in range(config.text_layers)])
        self.norm_final = nn.LayerNorm(width)
        self.projection = nn.Parameter(torch.empty(width, config.embed_dim))

    def forward(self, tokens):
        B, L = tokens.shape
        x = self.tokens(tokens) + self.positions[:L]  # (B, L, C)
        x = self.blocks(x)
        # (B, C), read where the largest id of each text stands: its end-of-text token.
        x = x[torch.arange(B, device=x.device), tokens.argmax(dim=1)]
        return self.norm_final(x) @ self.projection  # (B, D)


class CLIP(nn.Module):
    """Both towers and the learnt temperature. `init_weights` or a file must fill the weights.

    `logit_scale` holds the logarithm of the multiplier, as in OpenAI's and open_clip's models:
    it starts at ln(1/0.07) (section 2.5) and `clamp_scale_` keeps the multiplier ≤ 100. A model
    that learns by the sigmoid loss has a `logit_bias` too; both start where SigLIP's do, at ln 10
    and −10 (Zhai et al. 2023, arXiv 2303.15343, section 3.2).
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.vision = VisionTransformer(config)
        self.text = TextTransformer(config)
        self.logit_scale = nn.Parameter(torch.empty(()))
        self.logit_bias = nn.Parameter(torch.empty(())) if config.loss == "sigmoid" else None

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> "CLIP":
        """Draw every weight from `generator`.

        Both towers follow openai/CLIP's text tower (`initialize_parameters`). Convolutions follow
        He et al. 2015 (arXiv 1502.01852, section 2.2).
        """
        def normal(tensor, std):
            tensor.normal_(0, std, generator=generator)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # keeps the variance through a GELU
                normal(module.weight, math.sqrt(2 / module.weight[0].numel()))
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.Linear):
                module.bias.zero_()
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
        for tower in (self.vision, self.text):
            width = tower.positions.shape[1]
            normal(tower.positions, 0.01)
            normal(tower.projection, width ** -0.5)
            for block in tower.blocks:
                # What is added to the residual stream shrinks with depth (GPT-2, section 2.3).
                residual = width ** -0.5 * (2 * len(tower.blocks)) ** -0.5
                normal(block.attention.qkv.weight, width ** -0.5)
                normal(block.attention.out.weight, residual)
                normal(block.mlp[0].weight, (2 * width) ** -0.5)
                normal(block.mlp[2].weight, residual)
        normal(self.text.tokens.weight, 0.02)
        if self.vision.class_token is not None:
            normal(self.vision.class_token, self.vision.class_token.numel() ** -0.5)
        self.logit_scale.fill_(math.log(1 / 0.07))
        if self.logit_bias is not None:
            self.logit_scale.fill_(math.log(10))
            self.logit_bias.fill_(-10)
        return self

    def lock(self, side: str, unlock_last: int = 0) -> "CLIP":
        """Freeze the "image" or "text" tower, but for its last blocks and what comes after them.

        Locked-image tuning trains only the text tower (LiT, Zhai et al. 2022, arXiv 2111.07991).
        ValueError for more blocks than the tower has.
        """
        tower = {"image": self.vision, "text": self.text}[side]
        if unlock_last > len(tower.blocks):
            raise ValueError(f"unlock_last is {unlock_last}, but the {side} tower has "
                             f"{len(tower.blocks)} blocks")
        tower.requires_grad_(False)
        if unlock_last:
            last = tower.norm_post if side == "image" else tower.norm_final
            for part in (*tower.blocks[-unlock_last:], last, tower.projection):
                part.requires_grad_(True)
        return self

    def recompute_blocks(self) -> "CLIP":
        """Trade time for memory in training: see `Blocks`."""
        self.vision.blocks.recompute = self.text.blocks.recompute = True
        return self

    @torch.no_grad()
    def clamp_scale_(self):
        """After an optimiser step: keep the multiplier ≤ 100 (section 2.5)."""
        self.logit_scale.clamp_(max=math.log(MAX_SCALE))

    def encode_image(self, pixels, normalize: bool = False):
        """Normalised pixels (B, 3, S, S), float → embeddings (B, D); unit length if asked."""
        features = self.vision(pixels)
        return F.normalize(features, dim=-1) if normalize else features

    def encode_text(self, tokens, normalize: bool = False):
        """Token ids (B, L), int64 → embeddings (B, D); unit length if asked."""
        features = self.text(tokens)
        return F.normalize(features, dim=-1) if normalize else features

    def forward(self, pixels, tokens):
        """→ (image_features (B, D), text_features (B, D), multiplier ()), features of length 1.

        In place of pixels or tokens, features (B, D) of length 1 may be given, computed beforehand
        by a tower that is locked (LiT, Zhai et al. 2022, arXiv 2111.07991).
        """
        image_features, text_features = pixels, tokens
        if pixels.ndim == 4:
            image_features = self.encode_image(pixels, normalize=True)
        if not tokens.is_floating_point():
            text_features = self.encode_text(tokens, normalize=True)
        return image_features, text_features, self.logit_scale.exp()
