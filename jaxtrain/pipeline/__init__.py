"""Pipeline parallelism: schedules are tables, checked and simulated here, and run by one executor."""
