"""Docs site, built by Sphinx, with every link checked.

`python -m workflow.site` writes it into site/.
"""
