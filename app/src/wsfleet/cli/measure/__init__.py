"""Counting, timing and reporting: histograms, accounts of messages, reports, charts and pages.

May import `cli.errors`, and `cluster` and below; it reaches no cluster.
"""
