"""Other ways to run the same network: in fewer operations, with weights fetched block by block, or differentiated."""
