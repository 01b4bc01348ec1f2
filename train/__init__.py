"""Training: the text tokenizer, the frame codec, the model."""
