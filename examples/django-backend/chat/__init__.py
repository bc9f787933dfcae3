"""A chat in Django, whose messages travel over a WebSocket cluster."""
