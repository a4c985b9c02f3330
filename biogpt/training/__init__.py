"""Pre-training, fine-tuning and scoring; nothing here is needed to use a model."""
