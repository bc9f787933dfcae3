"""The application that a node serves: how it is loaded, and what is said when it fails.

May import `node` and below.
"""
