"""Tests of the SCSI layer: a CDB in, status, data and sense out."""
