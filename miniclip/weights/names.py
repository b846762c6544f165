"""The names of the same tensors, and of the same files, in three projects.

NAMES lists three namings of the same Transformer side by side: ours, OpenAI's and Hugging Face's.
open_clip uses OpenAI's names, but some of its models put "text." before the text tower's. Hugging
Face stores q, k and v separately and transposes the two projections.
"""

import torch

OURS, OPENAI, HF = 0, 1, 2  # columns of NAMES; a name is translated part by part, row by row
NAMES = (
    ("vision.class_token", "visual.class_embedding", "vision_model.embeddings.class_embedding"),
    ("vision.positions", "visual.positional_embedding",
     "vision_model.embeddings.position_embedding.weight"),
    ("vision.patches.", "visual.conv1.", "vision_model.embeddings.patch_embedding."),
    ("vision.norm_pre.", "visual.ln_pre.", "vision_model.pre_layrnorm."),  # Hugging Face's spelling
    ("vision.blocks.", "visual.transformer.resblocks.", "vision_model.encoder.layers."),
    ("vision.norm_post.", "visual.ln_post.", "vision_model.post_layernorm."),
    ("vision.projection", "visual.proj", "visual_projection.weight"),
    ("text.tokens.", "token_embedding.", "text_model.embeddings.token_embedding."),
    ("text.positions", "positional_embedding", "text_model.embeddings.position_embedding.weight"),
    ("text.blocks.", "transformer.resblocks.", "text_model.encoder.layers."),
    ("text.norm_final.", "ln_final.", "text_model.final_layer_norm."),
    ("text.projection", "text_projection", "text_projection.weight"),
    (".norm1.", ".ln_1.", ".layer_norm1."),
    (".attention.qkv.", ".attn.in_proj_", ".self_attn.{q,k,v}_proj."),
    (".attention.out.", ".attn.out_proj.", ".self_attn.out_proj."),
    (".norm2.", ".ln_2.", ".layer_norm2."),
    (".mlp.0.", ".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.2.", ".mlp.c_proj.", ".mlp.fc2."))

# Files beside each other in a folder of Hugging Face's or of open_clip's.
HF_WEIGHTS, HF_CONFIG, HF_PIXELS = "model.safetensors", "config.json", "preprocessor_config.json"
OPEN_CLIP_WEIGHTS, OPEN_CLIP_CONFIG = "open_clip_model.safetensors", "open_clip_config.json"
WEIGHTS = (HF_WEIGHTS, "pytorch_model.bin", OPEN_CLIP_WEIGHTS, "open_clip_pytorch_model.bin",
           "model.safetensors.index.json", "pytorch_model.bin.index.json")  # the last: of shards
SETTINGS = (HF_CONFIG, OPEN_CLIP_CONFIG, HF_PIXELS, "processor_config.json")  # transformers 5's
MERGES = ("merges.txt", "bpe_simple_vocab_16e6.txt.gz")
TOKENIZER = "tokenizer.json"  # transformers 5 keeps the merges in it, and writes no merges.txt


def translate(name: str, column: int) -> str:
    """One of our names in another column of NAMES."""
    for row in NAMES:
        name = name.replace(row[OURS], row[column])
    return name


def theirs(name: str, tensor: torch.Tensor, column: int) -> dict[str, torch.Tensor]:
    """One of our tensors → theirs, by name. They are views: writing to them changes ours.

    Hugging Face has q, k and v apart; its projections are nn.Linear, whose weights are (out, in).
    """
    other = translate(name, column)
    if "{q,k,v}" in other:
        return {other.replace("{q,k,v}", x): part for x, part in zip("qkv", tensor.chunk(3))}
    return {other: tensor.T if column == HF and name.endswith(".projection") else tensor}
