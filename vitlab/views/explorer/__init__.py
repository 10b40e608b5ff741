"""The page of `visualize.py explorer`: HTML, CSS and ES modules beside this file, and the Python that fills them."""
