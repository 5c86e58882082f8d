"""What lies in a model folder, without the model: where it is found, configuration, weights, tokenizer, card."""
