"""A model for programs that know nothing of this repository."""
