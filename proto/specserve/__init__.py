"""What a service needs to run: its server, settings, logs, and the files of its model."""
