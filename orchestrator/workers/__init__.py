"""A trial's processes under Ray: where they run, how they are started, how they end."""
