"""Adapters to the hosts, a file or folder each; the core never imports them."""
