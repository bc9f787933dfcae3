"""Tests of the Centrifuge protocol's endpoint."""
