"""Video files as bytes: which formats are opened, where packets lie, whether anything is missing."""
