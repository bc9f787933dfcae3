"""One small application in each framework: `/hello`, `/echo`, `/room/NAME`, `/boom`, `/members`.

`/hello` is HTTP. `/room/NAME` sends each text to all who are there, in a loop. `/members` wants a
cookie. All of them know a subprotocol, `chat.v1`, and say "ready" in the answer to `/hello` because
of what their start-up has done, where the framework has one.
"""
