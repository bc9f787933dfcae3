"""A chat: sign in, rooms, messages that are checked and kept."""
