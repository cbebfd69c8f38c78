"""Codecs: frames to latents or codes, and back."""
