"""The members of the cluster: registry of nodes, owners of client names, policies.

The policies are those of autoscaling and rebalancing. May import `channels`, `redis` and below.
"""
