"""What only a GPU can show: ``python -m tests.gpu``. Torch and transformers are enough."""
