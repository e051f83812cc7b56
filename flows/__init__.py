"""When things run: Prefect flows, schedules, the command line."""
