"""What moves environments: jobs with leases, their steps, the comparison with what hypervisors have, schedules."""
