"""The built-in data set: drawn shapes, the sentences about them, a small tokenizer and a small model configuration."""
