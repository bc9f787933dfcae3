"""Publications between nodes: publish, follow, history, presence, control messages, surveys.

May import `channels`, `redis` and below.
"""
