"""The HTTP API: `create_app` in `whimbrel.server.app`, `serve` in `whimbrel.server.serve`."""
