"""What goes with an installation: units, packages, alerts, dashboards. Nothing of it is imported by the tools."""
