"""The application that a node serves: its import, its lifespan, and the events it decides on.

May import `node` and below.
"""
