"""The commands of ``minimagen``: one module for each, and what they share."""
