"""Report pages and pictures of proposals.

Imports proposals and what lies below.
"""
