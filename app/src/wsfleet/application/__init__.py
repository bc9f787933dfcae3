"""The application that a node serves: its import, its lifespan, and the errors of both.

May import `node` and below.
"""
