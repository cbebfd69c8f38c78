"""Conversations about videos: formats of records, chat templates, tokenizers, the chat dataset."""
