"""Engines that turn tokens into logits."""
