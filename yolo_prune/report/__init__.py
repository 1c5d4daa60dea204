"""A run as rows (JSON) and everything made from them: Markdown, CSV, HTML."""
