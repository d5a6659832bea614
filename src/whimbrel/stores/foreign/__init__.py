"""Databases that other programs filled, and tables made in the form in which other programs would make them.

The port in `base`; a file for each database; `resolve` finds one by its URI. A view's stores are in the rooms beside
this one: they hold what we made, in a form of our own.
"""
