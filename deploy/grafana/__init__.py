"""Dashboards for Grafana: `panels` says what they show, `draw` makes the files of it."""
