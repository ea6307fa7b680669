"""Images from disk, regions of them, and grids of edited ones."""
