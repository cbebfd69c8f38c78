"""Video diffusion transformers: the model, its text encoder, its attention per layer, its sampler."""
