"""Files behind a URL: which machines are spoken to, and where downloads lie."""
