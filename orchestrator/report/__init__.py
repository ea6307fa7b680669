"""What a sweep found, and how it stands: in the terminal, as a page, and live."""
