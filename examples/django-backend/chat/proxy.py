"""The endpoints that a node asks: https://centrifugal.dev/docs/server/proxy has their JSON.

Nothing here is about WebSockets: each endpoint gets a POST with JSON, and answers with JSON.
"""

import json
from functools import wraps
from hmac import compare_digest

from django.conf import settings
from django.http import HttpResponseForbidden, JsonResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from chat.models import Message, Room

LONGEST_TEXT = Message._meta.get_field("text").max_length


class Refused(Exception):
    """An answer that is not a result: its key in the JSON, the code, and the reason."""

    def __init__(self, kind, **answer):
        super().__init__(answer)
        self.answer = {kind: answer}


def endpoint(view):
    """Make an endpoint of a function that returns the `result` for an event."""

    @csrf_exempt  # a node has no CSRF token; it has the key
    @require_POST
    @wraps(view)
    def answered(request):
        key = request.headers.get("X-Proxy-Key", "")
        if not compare_digest(key.encode(), settings.PROXY_KEY.encode()):
            return HttpResponseForbidden()
        try:
            return JsonResponse({"result": view(request, json.loads(request.body))})
        except Refused as refused:
            return JsonResponse(refused.answer)

    return answered


@endpoint
def connect(request, event):
    """Let in users that are signed in: the node forwards the cookie of Django's own session."""
    user = request.user
    if not user.is_authenticated:
        raise Refused("disconnect", code=4501, reason="sign in first")
    return {"user": str(user.pk), "info": {"name": user.username}}


@endpoint
def subscribe(request, event):
    """Let a member into a room."""
    room_of(event)
    return {}


@endpoint
def publish(request, event):
    """Keep a member's message, and return what all members receive."""
    room = room_of(event)
    text = event["data"].get("text") if isinstance(event["data"], dict) else None
    if not isinstance(text, str) or not 0 < len(text) <= LONGEST_TEXT:
        raise Refused("error", code=422, message=f"text has 1 to {LONGEST_TEXT} characters")
    message = Message.objects.create(room=room, author_id=event["user"], text=text)
    return {"data": {"id": message.pk, "author": message.author.username, "text": text}}


@endpoint
def rpc(request, event):
    """Answer a call; the one method is `members`."""
    if event.get("method") != "members":
        raise Refused("error", code=404, message="no such method")
    room = room_of({"user": event["user"], "channel": f"room:{event['data']['room']}"})
    return {"data": {"members": [user.username for user in room.members.order_by("username")]}}


def room_of(event):
    """Return the room of a channel `room:SLUG`, if the user is a member."""
    try:
        return Room.objects.get(
            slug=event["channel"].removeprefix("room:"), members=event["user"]
        )
    except (Room.DoesNotExist, ValueError):
        raise Refused("error", code=403, message="not your room") from None
