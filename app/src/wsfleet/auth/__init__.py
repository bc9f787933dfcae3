"""Tokens: their keys, their verification, and the denylist of users and tokens.

May import `channels`, `redis` and below.
"""
