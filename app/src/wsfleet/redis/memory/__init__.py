"""A node without Redis: the keys, functions and pub/sub in the memory of its process."""
