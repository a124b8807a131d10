"""The controller under a service manager: readiness, watchdog, sockets that it passes."""
