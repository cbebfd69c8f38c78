"""What a trained model makes: videos, answers, evaluations, latents."""
