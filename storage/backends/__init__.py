"""One module for each client library; imported only when a URL needs it."""
