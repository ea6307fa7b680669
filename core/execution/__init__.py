"""The same network in fewer operations, with fewer saved bytes, streamed from the host, or as its derivative."""
