"""Judged queries: a collection in BEIR's layout, the measures of a ranking, and whether one is better than another."""
