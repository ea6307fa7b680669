"""Use a bundle: edit images, name directions, and serve a page with sliders."""
