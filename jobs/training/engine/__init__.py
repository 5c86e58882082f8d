"""Optimiser back ends behind one interface: plain PyTorch, and DeepSpeed's ZeRO."""
