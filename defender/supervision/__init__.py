"""The defender under a service manager: readiness, and a watchdog fed by self-checks."""
