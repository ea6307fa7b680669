"""Report what a sweep found and how far it is: in the terminal, as a page, and live."""
