"""The pages: a list of rooms, and a room."""

from django.conf import settings
from django.contrib.auth.decorators import login_required
from django.shortcuts import get_object_or_404, render


@login_required
def rooms(request):
    """Show the rooms of the user."""
    return render(request, "rooms.html", {"rooms": request.user.rooms.order_by("title")})


@login_required
def room(request, slug):
    """Show a room with its last messages."""
    found = get_object_or_404(request.user.rooms, slug=slug)
    last = found.messages.select_related("author").order_by("-id")[:50]
    context = {
        "room": found,
        "last": reversed(last),
        "channel": f"room:{found.slug}",
        "websocket": settings.WEBSOCKET_URL,
    }
    return render(request, "room.html", context)
