"""Alerts and dashboards: what they name is there, alerts fire when they must and are silent when they must."""
