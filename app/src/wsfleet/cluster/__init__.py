"""The members of the cluster: registry of nodes, owners of client names, autoscaling policy.

May import `channels`, `redis` and below.
"""
