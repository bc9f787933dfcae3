"""The console, `/console`: a page that shows the cluster, and the JSON that it reads.

May import `clients`, `api`, `node` and below.
"""
