"""Report pages and figures of proposals.

Imports proposals and the layers below them.
"""
