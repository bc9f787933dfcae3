"""Measurements and reports: histograms, accounts of deliveries, HTML pages.

May import `cli.errors`.
"""
