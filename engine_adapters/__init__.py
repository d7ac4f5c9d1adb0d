"""Everything that knows a particular engine. Runs on Python >= 3.10 with grpcio only and never imports `gateway`."""
