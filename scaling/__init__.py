"""Conditional scaling laws, fitted to the architectures and losses of training runs."""
