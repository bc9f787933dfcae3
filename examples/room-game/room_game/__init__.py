"""A game in rooms: each is held by one process of the cluster, and survives a deploy."""
