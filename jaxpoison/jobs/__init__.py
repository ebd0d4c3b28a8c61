"""Jobs from data to records: run, scan, explain, repair."""
