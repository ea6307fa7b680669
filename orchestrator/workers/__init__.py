"""Run the processes of a trial under Ray: where they run, how they start, how they end."""
