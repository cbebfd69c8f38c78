"""Raw videos become a dataset: convert, write shards, encode latents, import WebDatasets."""
