"""Video-language models: language models of transformers, vision towers, masks of conversations, caches."""
