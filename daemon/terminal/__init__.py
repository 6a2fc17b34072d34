"""What people see while a run goes on: a live view on a terminal, log lines elsewhere."""
