"""What test.py and visualize.py show of a trained model."""
