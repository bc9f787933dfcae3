"""Tests of the Centrifuge protocol's codecs."""
