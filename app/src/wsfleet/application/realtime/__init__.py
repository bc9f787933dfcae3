"""`Realtime`: an application's handlers, and its calls of the node, in the node's own process."""
