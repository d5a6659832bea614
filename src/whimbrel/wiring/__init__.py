"""Wiring: what a home uses, made of its settings. `models` for models with their guards and caches, `cutting` for
reading documents. `whimbrel.app` puts these together with the rest."""
