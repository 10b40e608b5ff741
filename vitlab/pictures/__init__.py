"""Numbers in, one picture file out."""
