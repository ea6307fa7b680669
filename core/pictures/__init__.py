"""Images: real ones read from disk, masks of their regions, and grids of edited images."""
