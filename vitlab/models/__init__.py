"""What the Vision Transformer is compared with."""
