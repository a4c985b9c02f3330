"""Text to ids and back, sentences, documents in, results out."""
