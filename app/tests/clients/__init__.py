"""Tests of the clients' endpoints."""
