"""The planner's estimates against runs that are made on this machine."""
