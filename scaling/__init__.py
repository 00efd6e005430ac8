"""From architectures and training runs to a conditional scaling law."""
