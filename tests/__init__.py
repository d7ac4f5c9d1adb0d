"""Tests of the gateway; names and places mirror gateway/."""
