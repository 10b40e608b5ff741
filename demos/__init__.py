"""What explains: notebooks, and the diagrams with their script."""
