"""The commands of search: propose, measure, compare-families, report and doctor.

Imports reports, proposals, families and all layers below them.
"""
