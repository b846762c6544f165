"""What a trained CLIP can do: retrieval, zero-shot classification, search."""
