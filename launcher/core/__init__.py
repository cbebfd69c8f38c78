"""What every part of the launcher uses: run folder, records, terminal, hardware, heartbeats."""
