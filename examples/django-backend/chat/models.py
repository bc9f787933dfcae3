"""Rooms, their members, and what was said."""

from django.conf import settings
from django.db import models


class Room(models.Model):
    """A room; its channel is `room:` and its slug."""

    slug = models.SlugField(unique=True)
    title = models.CharField(max_length=100)
    members = models.ManyToManyField(settings.AUTH_USER_MODEL, related_name="rooms")

    def __str__(self):
        """Return the title."""
        return self.title


class Message(models.Model):
    """A message in a room."""

    room = models.ForeignKey(Room, models.CASCADE, related_name="messages")
    author = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE)
    text = models.CharField(max_length=2000)
    written_at = models.DateTimeField(auto_now_add=True)

    def __str__(self):
        """Return the text."""
        return self.text
