"""From a query to hits: dense and lexical views side by side, fused, hydrated from the catalog."""
